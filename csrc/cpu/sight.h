// What the rows of a block see of a tile of 64 keys: a bit a key, from the rows' ranges (causality,
// windows, the sequence's end) and from a mask; and what the mask adds to the scores.
#pragma once

#include "cpu/attend.h"

namespace hexad {
namespace {

// Keys [from, upto) of a tile that some of sixteen rows see; [inner_from, inner_upto) all of them.
struct Span {
  int from, upto, inner_from, inner_upto;
  bool whole() const { return inner_from == 0 && inner_upto == kTile; }
};

// Bit i: lane i's sign.
HEXAD_INLINE uint32_t signs(vi v) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)v.lo)) | uint32_t(_mm256_movemask_ps((__m256)v.hi))
                                                          << 8;
#else
  int32_t lanes[kLanes];
  uint32_t all = 0;
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) all |= uint32_t(lanes[i] < 0) << i;
  return all;
#endif
}

// Bit i: byte i is not 0.
HEXAD_INLINE uint64_t set_bytes(const uint8_t* p) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(v, v);
#elif defined(__AVX2__)
  const __m256i none = _mm256_setzero_si256();
  const __m256i a = _mm256_loadu_si256((const __m256i*)p),
                b = _mm256_loadu_si256((const __m256i*)(p + 32));
  return ~(uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, none)))) |
           uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(b, none)))) << 32);
#else
  uint64_t all = 0;
  for (int i = 0; i < 64; ++i) all |= uint64_t(p[i] != 0) << i;
  return all;
#endif
}

// Bits [from, upto) of 64.
HEXAD_INLINE uint64_t run_of_bits(int from, int upto) {
  if (from >= upto) return 0;
  return (upto == 64 ? ~0ull : (1ull << upto) - 1) & ~((1ull << from) - 1);
}

template <class T>
class Sight {
 public:
  int rows, width;                        // rows, and the lanes that hold them
  int64_t query[kRows], head[kRows];      // which query of which head of the group a lane holds
  int64_t first, last;                    // keys that any row sees
  int from, upto;                         // the same within the tile
  bool plain;                             // all rows see all of those
  Span spans[kRows / kLanes];             // by sixteen rows, unless plain
  alignas(64) int32_t bits[2][kRows];     // keys 0 .. 31 and 32 .. 63 that a lane's row sees
  alignas(64) float bias[kTile * kRows];  // [key][row]: what a floating mask adds

  Sight(const Job<T>& job, int64_t begin, int64_t end)
      : rows(int(end - begin)), width((rows + kLanes - 1) / kLanes * kLanes), job_(job) {
    // Lanes beyond the last row repeat it.
    int64_t i = begin / job.group, g = begin % job.group;
    for (int r = 0; r < width; ++r) {
      query[r] = i, head[r] = g;
      mask_at_[r] = g * job.mask.head + i * job.mask.row;
      if (r + 1 < rows && ++g == job.group) g = 0, ++i;
    }
    first = INT64_MAX, last = 0, inner_first_ = 0, inner_last_ = INT64_MAX;
    for (int r = 0; r < width; ++r) {
      const int64_t at = query[r] + job.offset;
      lo_[r] = job.left < 0 ? 0 : std::max<int64_t>(0, at - job.left);
      hi_[r] = job.right < 0 ? job.count : std::min(job.count, at + job.right + 1);
      if (lo_[r] < hi_[r]) first = std::min(first, lo_[r]), last = std::max(last, hi_[r]);
      inner_first_ = std::max(inner_first_, lo_[r]), inner_last_ = std::min(inner_last_, hi_[r]);
    }
  }

  // Looks at the tile that starts at key `base`; false if no row sees any of it.
  bool look(int64_t base) {
    from = int(std::max<int64_t>(first - base, 0));
    upto = int(std::min<int64_t>(last - base, kTile));
    plain = base + from >= inner_first_ && base + upto <= inner_last_;
    if (plain && job_.mask.kind == MaskKind::none) {
      if (upto - from < kTile) fill(run_of_bits(from, upto));
      return true;
    }
    alignas(64) uint64_t words[kRows];
    read_mask(base, words);
    if (base < inner_first_ || base + kTile > inner_last_)
      for (int r = 0; r < width; ++r)
        words[r] &= run_of_bits(int(std::clamp<int64_t>(lo_[r] - base, 0, kTile)),
                                int(std::clamp<int64_t>(hi_[r] - base, 0, kTile)));
    uint64_t any = 0, all = ~0ull;
    for (int n = 0; n < width; n += kLanes) {
      uint64_t some = 0, each = ~0ull;
      for (int r = n; r < n + kLanes; ++r) {
        some |= words[r], each &= words[r];
        bits[0][r] = int32_t(words[r]), bits[1][r] = int32_t(words[r] >> 32);
      }
      spans[n / kLanes] = span(some, each);
      any |= some, all &= each;
    }
    if (!any) return false;
    from = __builtin_ctzll(any), upto = 64 - __builtin_clzll(any);
    plain = all == run_of_bits(from, upto);
    return true;
  }

  // For a register of lanes, from `lane` on: x where the row sees the key, else `other`.
  HEXAD_INLINE reg shown(int key, int lane, reg x, reg other) const {
    return where_bit(load<IntOf<reg>::type>(bits[key >> 5] + lane), key & 31, x, other);
  }

 private:
  void fill(uint64_t row) {
    for (int r = 0; r < width; ++r) bits[0][r] = int32_t(row), bits[1][r] = int32_t(row >> 32);
  }

  static Span span(uint64_t some, uint64_t each) {
    Span s{kTile, 0, kTile, 0};
    if (some) s.from = __builtin_ctzll(some), s.upto = 64 - __builtin_clzll(some);
    if (each) {
      s.inner_from = __builtin_ctzll(each), s.inner_upto = 64 - __builtin_clzll(each);
      if (each != run_of_bits(s.inner_from, s.inner_upto)) s.inner_from = kTile, s.inner_upto = 0;
    }
    return s;
  }

  // What the mask shows of the tile, and what it adds.
  void read_mask(int64_t base, uint64_t* words) {
    const Mask& m = job_.mask;
    switch (m.kind) {
      case MaskKind::none:
        return std::fill(words, words + width, ~0ull);
      case MaskKind::boolean:
        return read_rows(static_cast<const uint8_t*>(m.data) + base * m.key, base, words);
      case MaskKind::f32:
        return read_bias(static_cast<const float*>(m.data) + base * m.key, base, words);
      case MaskKind::bf16:
        return read_bias(static_cast<const bf16*>(m.data) + base * m.key, base, words);
      case MaskKind::f16:
        return read_bias(static_cast<const f16*>(m.data) + base * m.key, base, words);
    }
  }

  // Asks for row r of the tile to come, if it lies beside this one.
  template <class E>
  HEXAD_INLINE void ask_ahead(const E* p, int64_t base, int r) const {
    if (job_.mask.key != 1 || base + 2 * kTile > job_.count) return;
    for (int j = kTile; j < 2 * kTile; j += 64 / sizeof(E))
      __builtin_prefetch(p + mask_at_[r] + j, 0, 2);
  }

  // Rows of a boolean mask.
  void read_rows(const uint8_t* p, int64_t base, uint64_t* words) const {
    const Mask& m = job_.mask;
    const bool alike = m.row == 0 && (m.head == 0 || job_.group == 1);
    const int count = alike ? 1 : width;
    if (m.key == 1 && base + kTile <= job_.count) {
      for (int r = 0; r < count; ++r) {
        ask_ahead(p, base, r);
        words[r] = set_bytes(p + mask_at_[r]);
      }
    } else {
      for (int r = 0; r < count; ++r) {
        words[r] = 0;
        for (int j = from; j < upto; ++j)
          words[r] |= uint64_t(p[mask_at_[r] + j * m.key] != 0) << j;
      }
    }
    if (alike) std::fill(words + 1, words + width, words[0]);
  }

  // Rows of a floating mask, turned, and which keys they do not hide.
  template <class E>
  void read_bias(const E* p, int64_t base, uint64_t* words) {
    const int64_t step = job_.mask.key;
    const vf hides = set1(-__builtin_inff());
    std::fill(words, words + width, ~0ull);
    for (int r = 0; r < width; ++r) ask_ahead(p, base, r);
    for (int j = from / kLanes * kLanes; j < upto; j += kLanes)
      for (int n = 0; n < width; n += kLanes) {
        vf square[kLanes];
        if (step == 1 && base + j + kLanes <= job_.count) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) square[i] = load(p + mask_at_[n + i] + j);
        } else {
          for (int i = 0; i < kLanes; ++i) {
            alignas(64) float row[kLanes];
            for (int l = 0; l < kLanes; ++l)
              row[l] = to_float(p[mask_at_[n + i] + std::clamp(j + l, from, upto - 1) * step]);
            square[i] = load(row);
          }
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          words[n + i] ^= uint64_t(signs(equal(square[i], hides))) << j;
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(bias + (j + i) * kRows + n, square[i]);
      }
  }

  const Job<T>& job_;
  int64_t inner_first_, inner_last_;  // keys that all rows see
  int64_t lo_[kRows], hi_[kRows];     // that a row sees
  int64_t mask_at_[kRows];            // where its mask starts, in numbers
};

}  // namespace
}  // namespace hexad
