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

template <class Half>
constexpr uint16_t kHides = std::is_same<Half, bf16>::value ? 0xff80 : 0xfc00;  // -inf

// Whether a mask shows a key by x.
HEXAD_INLINE bool shows(uint8_t x) {
  return x != 0;
}
HEXAD_INLINE bool shows(float x) {
  return x != -__builtin_inff();
}
template <class Half>
HEXAD_INLINE bool shows(Half x) {
  return x.raw != kHides<Half>;
}
// Bit i: shows(p[i]), for 64 of them.
HEXAD_INLINE uint64_t shown_keys(const uint8_t* p) {
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
  for (int i = 0; i < 64; ++i) all |= uint64_t(shows(p[i])) << i;
  return all;
#endif
}
template <class Half>
HEXAD_INLINE uint64_t shown_keys(const Half* p) {
  uint64_t all = 0;
#if defined(__AVX512BW__)
  const __m512i hides = _mm512_set1_epi16(int16_t(kHides<Half>));
  for (int i = 0; i < 64; i += 32)
    all |= uint64_t(_mm512_cmpneq_epi16_mask(_mm512_loadu_si512(p + i), hides)) << i;
  return all;
#elif defined(__AVX2__)
  const __m256i hides = _mm256_set1_epi16(int16_t(kHides<Half>));
  for (int i = 0; i < 64; i += 32) {
    const __m256i a = _mm256_loadu_si256((const __m256i*)(p + i)),
                  b = _mm256_loadu_si256((const __m256i*)(p + i + 16));
    // Each half of a register has packed what it held.
    const __m256i ab =
        _mm256_packs_epi16(_mm256_cmpeq_epi16(a, hides), _mm256_cmpeq_epi16(b, hides));
    all |= uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_permute4x64_epi64(ab, 0xd8)))) << i;
  }
  return ~all;
#else
  for (int i = 0; i < 64; ++i) all |= uint64_t(shows(p[i])) << i;
  return all;
#endif
}
HEXAD_INLINE uint64_t shown_keys(const float* p) {
  uint64_t all = 0;
  const vf hides = set1(-__builtin_inff());
  for (int i = 0; i < 64; i += kLanes) {
#if defined(__AVX512F__)
    all |= uint64_t(_mm512_cmpneq_epi32_mask(_mm512_loadu_si512(p + i), (__m512i)hides)) << i;
#else
    all |= uint64_t(signs(equal(load(p + i), hides)) ^ 0xffff) << i;
#endif
  }
  return all;
}

// Bits [from, upto) of 64.
HEXAD_INLINE uint64_t run_of_bits(int from, int upto) {
  if (from >= upto) return 0;
  return (upto == 64 ? ~0ull : (1ull << upto) - 1) & ~((1ull << from) - 1);
}

template <class T>
class Sight {
 public:
  int rows, width;                     // rows, and the lanes that hold them
  int64_t query[kRows], head[kRows];   // which query of which head of the group a lane holds
  int64_t first, last;                 // keys that any row sees
  int from, upto;                      // the same within the tile
  bool plain;                          // all rows see all of those
  Span spans[kRows / kLanes];          // by sixteen rows, unless plain
  alignas(64) int32_t bits[2][kRows];  // keys 0 .. 31 and 32 .. 63 that a lane's row sees

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
    std::fill(words, words + width, ~0ull);
    with_mask(base, [&](const auto* p) { read_mask(p, base, words); });
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

  // Scores of sixteen rows, those of a key kRows apart, times scale, and what a mask adds.
  void add_mask(int64_t base, int lane, vf scale, float* scores) const {
    with_mask(base, [&](const auto* p) {
      if constexpr (sizeof(*p) > 1) add_bias(p, base, lane, scale, scores);
    });
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

  // f(p), with the mask from key `base` on as numbers of its type.
  template <class F>
  HEXAD_INLINE void with_mask(int64_t base, const F& f) const {
    const Mask& m = job_.mask;
    switch (m.kind) {
      case MaskKind::none:
        return;
      case MaskKind::boolean:
        return f(static_cast<const uint8_t*>(m.data) + base * m.key);
      case MaskKind::f32:
        return f(static_cast<const float*>(m.data) + base * m.key);
      case MaskKind::bf16:
        return f(static_cast<const bf16*>(m.data) + base * m.key);
      case MaskKind::f16:
        return f(static_cast<const f16*>(m.data) + base * m.key);
    }
  }

  // What a mask shows of the tile; keys beyond the last count as they come.
  template <class E>
  void read_mask(const E* p, int64_t base, uint64_t* words) const {
    const Mask& m = job_.mask;
    const bool alike = m.row == 0 && (m.head == 0 || job_.group == 1);
    const int count = alike ? 1 : width;
    const int64_t left = job_.count - base;
    if (m.key == 1 && left < kTile) {
      for (int r = 0; r < count; ++r) {
        E row[kTile] = {};
        memcpy(row, p + mask_at_[r], left * sizeof(E));
        words[r] = shown_keys(row);
      }
    } else if (m.key == 1) {
      for (int r = 0; r < count; ++r) {
        const E* row = p + mask_at_[r];
        // The tile to come.
        if (left >= 2 * kTile)
          for (int j = kTile; j < 2 * kTile; j += 64 / sizeof(E)) __builtin_prefetch(row + j, 0, 2);
        words[r] = shown_keys(row);
      }
    } else if (m.key == 0) {
      for (int r = 0; r < count; ++r) words[r] = shows(p[mask_at_[r]]) ? ~0ull : 0;
    } else {
      for (int r = 0; r < count; ++r) {
        words[r] = 0;
        for (int j = from; j < upto; ++j)
          words[r] |= uint64_t(shows(p[mask_at_[r] + j * m.key])) << j;
      }
    }
    if (alike) std::fill(words + 1, words + width, words[0]);
  }

  template <class E>
  void add_bias(const E* p, int64_t base, int lane, vf scale, float* scores) const {
    const int64_t step = job_.mask.key, left = step == 1 ? job_.count - base : 0;
    const int64_t* at = mask_at_ + lane;
    const auto add = [&](int j, vf bias) {
      const vf s = load(scores + j * kRows);
      store(scores + j * kRows, (kPaired<T> ? s * scale : s) + bias);
    };
    int j = from / kLanes * kLanes;
    if (step == 0) {  // the same for all keys
      alignas(64) float row[kLanes];
      for (int l = 0; l < kLanes; ++l) row[l] = to_float(p[at[l]]);
      for (const vf bias = load(row); j < upto; ++j) add(j, bias);
      return;
    }
    if constexpr (std::is_same<E, bf16>::value)  // turned by pairs of keys
      for (; j < upto && j + 2 * kLanes <= left; j += 2 * kLanes) {
        vf square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load<vf>(p + at[i] + j);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const vi both = hexad::bits(square[i]);
          add(j + 2 * i, from_bits(both << 16));
          add(j + 2 * i + 1, from_bits(both & set1i(int32_t(0xffff0000))));
        }
      }
    for (; j < upto; j += kLanes) {
      vf square[kLanes];
      if (j + kLanes <= left) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(p + at[i] + j);
      } else if (step == 1) {
        for (int i = 0; i < kLanes; ++i) square[i] = load_part(p + at[i] + j, left - j);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          alignas(64) float row[kLanes];
          for (int l = 0; l < kLanes; ++l)
            row[l] = to_float(p[at[i] + std::clamp(j + l, from, upto - 1) * step]);
          square[i] = load(row);
        }
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) add(j + i, square[i]);
    }
  }

  const Job<T>& job_;
  int64_t inner_first_, inner_last_;  // keys that all rows see
  int64_t lo_[kRows], hi_[kRows];     // that a row sees
  int64_t mask_at_[kRows];            // where its mask starts, in numbers
};

}  // namespace
}  // namespace hexad
