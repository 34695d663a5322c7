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
    uint64_t any = 0, all = ~0ull;
    const bool alike = job_.mask.row == 0 && (job_.mask.head == 0 || job_.group == 1);
    uint64_t shown = ~0ull;
    for (int n = 0; n < width; n += kLanes) {
      if (job_.mask.kind > MaskKind::boolean) read_bias(base, n);
      uint64_t some = 0, each = ~0ull;
      for (int r = n; r < n + kLanes; ++r) {
        uint64_t row = run_of_bits(int(std::clamp<int64_t>(lo_[r] - base, 0, kTile)),
                                   int(std::clamp<int64_t>(hi_[r] - base, 0, kTile)));
        if (job_.mask.kind == MaskKind::boolean && (r == 0 || !alike)) shown = read_row(base, r);
        if (job_.mask.kind > MaskKind::boolean) shown = ~hidden_[r];
        row &= shown;
        bits[0][r] = int32_t(row), bits[1][r] = int32_t(row >> 32);
        some |= row, each &= row;
      }
      spans[n / kLanes] = span(some, each);
      any |= some, all &= each;
    }
    if (!any) return false;
    from = __builtin_ctzll(any), upto = 64 - __builtin_clzll(any);
    plain = all == run_of_bits(from, upto);
    return true;
  }

  // A register of lanes, from `lane` on: all bits set where the row sees the key, else 0.
  HEXAD_INLINE IntOf<reg>::type sees(int key, int lane) const {
    // The key's bit moved to the sign and spread.
    return (load<IntOf<reg>::type>(bits[key >> 5] + lane) << (31 - (key & 31))) >> 31;
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

  int64_t mask_at(int64_t base, int r) const {
    const Mask& m = job_.mask;
    return head[r] * m.head + query[r] * m.row + base * m.key;
  }

  // What a boolean mask shows row r.
  uint64_t read_row(int64_t base, int r) const {
    const uint8_t* p = static_cast<const uint8_t*>(job_.mask.data) + mask_at(base, r);
    if (job_.mask.key == 1 && base + kTile <= job_.count) return set_bytes(p);
    uint64_t row = 0;
    for (int j = from; j < upto; ++j) row |= uint64_t(p[j * job_.mask.key] != 0) << j;
    return row;
  }

  // Sixteen rows of a floating mask, turned, and which keys it hides.
  void read_bias(int64_t base, int n) {
    for (int r = n; r < n + kLanes; ++r) hidden_[r] = 0;
    const vf hides = set1(-__builtin_inff());
    const int size = job_.mask.kind == MaskKind::f32 ? 4 : 2;
    const bool more = job_.mask.key == 1 && base + 2 * kTile <= job_.count;
    for (int r = n; r < n + kLanes && more; ++r) {
      const char* next = static_cast<const char*>(job_.mask.data) + mask_at(base + kTile, r) * size;
      for (int i = 0; i < kTile * size; i += 64) __builtin_prefetch(next + i);
    }
    for (int j = from / kLanes * kLanes; j < upto; j += kLanes) {
      vf square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        square[i] = read_sixteen(base, n + i, j);
        hidden_[n + i] |= uint64_t(signs(equal(square[i], hides))) << j;
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(bias + (j + i) * kRows + n, square[i]);
    }
  }

  vf read_sixteen(int64_t base, int r, int j) const {
    const Mask& m = job_.mask;
    const int64_t at = mask_at(base + j, r);
    const auto read = [&](const auto* p) {
      if (m.key == 1 && base + j + kLanes <= job_.count) return load(p + at);
      alignas(64) float row[kLanes];
      for (int i = 0; i < kLanes; ++i)
        row[i] = to_float(p[at + (std::clamp(j + i, from, upto - 1) - j) * m.key]);
      return load(row);
    };
    if (m.kind == MaskKind::f32) return read(static_cast<const float*>(m.data));
    if (m.kind == MaskKind::bf16) return read(static_cast<const bf16*>(m.data));
    return read(static_cast<const f16*>(m.data));
  }

  const Job<T>& job_;
  int64_t inner_first_, inner_last_;  // keys that all rows see
  int64_t lo_[kRows], hi_[kRows];     // that a row sees
  uint64_t hidden_[kRows];            // of the tile, by a floating mask
};

}  // namespace
}  // namespace hexad
