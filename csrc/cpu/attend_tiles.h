// What bfloat16 attention does on AMX with a tile of 64 keys, the same in prefill and decode: a row
// of S = Q K^T is a query, its lanes are keys. Keys are turned to be the right factor of S, values
// are paired to be that of O = P V; both are read once for all rows of a block.
#pragma once

#include "cpu/amx.h"

#if HEXAD_TILES

#include <algorithm>

#include "cpu/ahead.h"
#include "cpu/math.h"
#include "cpu/turn.h"

namespace hexad {
namespace {

constexpr int kTileKeys = 64;
constexpr int kTileFloats = 256;  // of 16 rows of 64 bytes
constexpr int kGroups = kTileKeys / kTileSide;
constexpr int kStepWidth = 2 * kTilePairs;      // dimensions or keys that one product sums over
constexpr int16_t kInfinite = int16_t(0xff00);  // a doubled word from which on it is not finite
constexpr float kLog2e = 1.44269504088896341f;
// A row's weights may exceed 1 by so much, as sums of four, before its reference rises.
constexpr float kRoom = 256.f;

HEXAD_INLINE int64_t steps_of(int64_t n) {
  return (n + kStepWidth - 1) / kStepWidth;
}

HEXAD_INLINE __mmask32 first_of_32(int64_t n) {
  return n >= 32 ? ~__mmask32(0) : n <= 0 ? 0 : (__mmask32(1) << n) - 1;
}

HEXAD_INLINE __m512i load_32(const bf16* p, int64_t n) {
  return _mm512_maskz_loadu_epi16(first_of_32(n), p);
}

// Dimensions [at, at + dims) of keys k[from .. upto) as right factors: tile step * kGroups + group
// has the pairs of dimensions of a step for sixteen keys. Dimensions beyond are zero; other keys of
// a group in use repeat readable ones. `next`, if any: what to ask the memory for meanwhile.
inline void turn_keys(const bf16* const* k, Ahead* next, int64_t at, int64_t dims, int from,
                      int upto, float* to) {
  for (int g = from / kTileSide; g * kTileSide < upto; ++g) {
    const bf16* rows[kTileSide];
    for (int i = 0; i < kTileSide; ++i) rows[i] = k[g * kTileSide + i] + at;
    for (int64_t d = 0; d < dims; d += kStepWidth) {
      if (next) next->ask(kTileSide * 64);
      reg square[kTileSide];
      if (dims - d >= kStepWidth) {
        load_turned(reinterpret_cast<const void* const*>(rows), 2 * d, square);
      } else {
        for (int i = 0; i < kTileSide; ++i) square[i] = (reg)load_32(rows[i] + d, dims - d);
        transpose(square);
      }
      float* tile = to + (d / kStepWidth * kGroups + g) * kTileFloats;
#pragma GCC unroll 16
      for (int i = 0; i < kTileSide; ++i) store_reg(tile + i * kTileSide, square[i]);
    }
  }
}

// As pair_values; kWhole: all keys and whole steps of dimensions; kClean: infinities and NaN become
// zero. Returns the largest doubled word by column, if kCheck.
template <bool kWhole, bool kClean, bool kCheck = true>
__m512i pair_rows(const bf16* const* v, Ahead* next, int64_t at, int64_t dims, int from, int upto,
                  float* to) {
  alignas(64) static const uint16_t order[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                 37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = load<__m512i>(order);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i none = _mm512_set1_epi16(kInfinite);
  const int64_t wide = 2 * steps_of(dims);
  __m512i worst = _mm512_setzero_si512();
  const auto row = [&](int j, int64_t d) {
    const bool there = kWhole || (j >= from && j < upto);
    const __m512i x =
        kWhole ? _mm512_loadu_si512(v[j] + at + d) : load_32(v[j] + at + d, there ? dims - d : 0);
    if (!kCheck) return x;
    const __m512i twice = _mm512_add_epi16(x, x);
    worst = _mm512_max_epu16(worst, twice);
    return kClean ? _mm512_maskz_mov_epi16(_mm512_cmplt_epu16_mask(twice, none), x) : x;
  };
  const int first = kWhole ? 0 : from / kStepWidth * kStepWidth;
  const int last = kWhole ? kTileKeys : int(steps_of(upto)) * kStepWidth;
  for (int j = first; j < last; j += 2) {
    float* tile = to + j / kStepWidth * wide * kTileFloats + j % kStepWidth / 2 * kTileSide;
    for (int64_t d = 0; d < dims; d += kStepWidth, tile += 2 * kTileFloats) {
      if (next) next->ask(128);
      const __m512i a = row(j, d), b = row(j + 1, d);
      _mm512_store_si512(tile, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(tile + kTileFloats, _mm512_permutex2var_epi16(a, high, b));
    }
  }
  return worst;
}

// Dimensions [at, at + dims) of values v[from .. upto) as right factors: tile step * 2 *
// steps_of(dims) + dimension / 16 has the pairs of keys of a step. All else is zero, and so are
// infinities and NaN, which a weight of 0 would spread to rows that do not see them; true if there
// are any.
inline bool pair_values(const bf16* const* v, Ahead* next, int64_t at, int64_t dims, int from,
                        int upto, float* to) {
  const bool whole = from == 0 && upto == kTileKeys && dims % kStepWidth == 0;
  const __m512i worst = whole ? pair_rows<true, false>(v, next, at, dims, from, upto, to)
                              : pair_rows<false, false>(v, next, at, dims, from, upto, to);
  if (!_mm512_cmpge_epu16_mask(worst, _mm512_set1_epi16(kInfinite))) return false;
  pair_rows<false, true>(v, nullptr, at, dims, from, upto, to);
  return true;
}

// 2^x, below 1.5e-7 off; what would be below the least subnormal is 0, 2^-inf too, 2^inf is inf.
HEXAD_INLINE __m512 exp2_falling(__m512 x, __mmask16 seen) {
  const auto c = [](float value) { return _mm512_set1_ps(value); };
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_fmadd_ps(c(1.867130496e-3f), f, c(9.017029415e-3f));
  p = _mm512_fmadd_ps(p, f, c(5.579991376e-2f));
  p = _mm512_fmadd_ps(p, f, c(2.401644500e-1f));
  p = _mm512_fmadd_ps(p, f, c(6.931513118e-1f));
  p = _mm512_fmadd_ps(p, f, c(1.f));
  return _mm512_maskz_scalef_ps(seen, p, x);
}

// The softmax of one row as it walks over tiles. Weights are 2^(s c - m) for a reference m near the
// largest s c so far: m is that maximum when the row first sees a key, and again after a tile whose
// weights exceed kRoom. `m` and `sums` (sixteen partial sums of weights) are the row's state.
struct Softmax {
  float c;

  // Sixteen keys' weights, of those seen.
  HEXAD_INLINE __m512 weigh(const float* s, float m, __mmask16 seen) const {
    const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(s), _mm512_set1_ps(c), _mm512_set1_ps(m));
    return exp2_falling(x, seen);
  }

  template <bool kAll>
  HEXAD_INLINE __m512 weigh_all(const float* s, float m, uint64_t seen, __m512* w) const {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
      w[g] = weigh(s + g * kTileSide, m, kAll ? __mmask16(-1) : __mmask16(seen >> g * kTileSide));
    return _mm512_add_ps(_mm512_add_ps(w[0], w[1]), _mm512_add_ps(w[2], w[3]));
  }

  // Weights of the row's scores s for the keys that the bits of `seen` name, rounded, in order.
  // Returns what earlier weights are to be multiplied by.
  template <bool kAll>
  HEXAD_INLINE float row(const float* s, uint64_t seen, float* m, float* sums, bf16* p) const {
    __m512 w[kGroups], t;
    float fall = 1;
    bool rises = *m == -__builtin_inff();
    if (__builtin_expect(!rises, 1)) {
      t = weigh_all<kAll>(s, *m, seen, w);
      rises = _mm512_cmp_ps_mask(t, _mm512_set1_ps(kRoom), _CMP_NLE_UQ) != 0;
    }
    if (__builtin_expect(rises, 0)) {
      fall = rise(s, kAll ? ~uint64_t(0) : seen, m, sums);
      t = weigh_all<kAll>(s, *m == -__builtin_inff() ? 0.f : *m, seen, w);
    }
    _mm512_store_ps(sums, _mm512_add_ps(_mm512_load_ps(sums), t));
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; g += 2)
      _mm512_store_si512(p + g * kTileSide, (__m512i)_mm512_cvtne2ps_pbh(w[g + 1], w[g]));
    return fall;
  }

 private:
  __attribute__((noinline)) float rise(const float* s, uint64_t seen, float* m, float* sums) const {
    vf top = set1(*m);
    for (int g = 0; g < kGroups; ++g) {
      const __m512 x = _mm512_mul_ps(_mm512_load_ps(s + g * kTileSide), _mm512_set1_ps(c));
      top = larger((vf)_mm512_mask_mov_ps((__m512)top, __mmask16(seen >> g * kTileSide), x), top);
    }
    const float before = *m, now = max_across(top);
    *m = now;
    if (now == before) return 1;
    if (before == -__builtin_inff()) return 1;  // there are no sums yet
    alignas(64) float fall[kLanes];
    store(fall, (vf)exp2_falling(_mm512_set1_ps(before - now), __mmask16(-1)));
    store(sums, load(sums) * set1(fall[0]));
    return fall[0];
  }
};

// The end of sixteen rows' softmax: from references (of logarithms to base 2), totals, and sinks,
// if any, what the rows' sums are to be multiplied by, and the natural logarithms of the totals.
inline void close_softmax(const float* best, const float* total, const float* sinks, float* factor,
                          float* lse) {
  const vf none = set1(-__builtin_inff());
  vf m = load(best) * set1(0.693147180559945309f), sum = load(total), alpha = set1(1.f);
  if (sinks) {
    // A sink is one more key, whose value is 0.
    const vf sink = load(sinks), top = larger(sink, m);
    const vf base = select(equal(top, none), zero(), top);
    alpha = exp_falling(m - base);
    sum = sum * alpha + exp_falling(sink - base);
    m = top;
  }
  const vi nothing = equal(sum, zero());
  sum = select(nothing, set1(1.f), sum);
  store(lse, select(nothing, none, m + log(sum)));
  store(factor, alpha / sum);
}

inline void write_row(bf16* out, const float* sums, float factor, int64_t dims) {
  int64_t d = 0;
  for (; d + kLanes <= dims; d += kLanes) store(out + d, load(sums + d) * set1(factor));
  if (d < dims) store_first(out + d, load(sums + d) * set1(factor), dims - d);
}

}  // namespace
}  // namespace hexad
#endif
