// What bfloat16 attention does on AMX with a tile of 64 keys, the same in prefill and decode: a row
// of S = Q K^T is a query, its lanes are keys. Keys are turned to be the right factor of S, values
// are paired to be that of O = P V; both are read once for all rows of a block.
#pragma once

#include "cpu/amx.h"

#if HEXAD_TILES

#include <algorithm>
#include <type_traits>

#include "cpu/ahead.h"
#include "cpu/attend_scores.h"
#include "cpu/turn.h"

namespace hexad {
namespace {

constexpr int kTileKeys = 64;
constexpr int kTileFloats = 256;  // of 16 rows of 64 bytes
constexpr int kGroups = kTileKeys / kTileSide;
constexpr int kStepWidth = 2 * kTilePairs;      // dimensions or keys that one product sums over
constexpr int16_t kInfinite = int16_t(0xff00);  // a doubled word from which on it is not finite
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

// While it lives subnormals are zero, as they are to tiles; weights far below 1 would cost much.
class SubnormalsAreZero {
 public:
  SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~SubnormalsAreZero() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
};

// 2^x, below 1.5e-7 off; 2^-inf is 0, 2^inf is inf.
HEXAD_INLINE vf exp2_falling(vf x, __mmask16 seen) {
  const vf f = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  vf p = fma(set1(1.867130496e-3f), f, set1(9.017029415e-3f));
  p = fma(p, f, set1(5.579991376e-2f));
  p = fma(p, f, set1(2.401644500e-1f));
  p = fma(p, f, set1(6.931513118e-1f));
  p = fma(p, f, set1(1.f));
  return (vf)_mm512_maskz_scalef_ps(seen, (__m512)p, (__m512)x);
}

// The softmax of one row as it walks over tiles. Weights are 2^less() for a reference m near the
// largest score so far: m is that maximum, and headroom, when the row first sees a key, and again
// after a tile whose weights exceed kRoom, or may be expected to. `m` and `sums` (sixteen partial
// sums of weights) are the row's state.
template <class Score>
struct Softmax {
  const Score& score;

  template <bool kAll>
  HEXAD_INLINE vf weigh(const float* s, float m, uint64_t seen, vf* w) const {
    vf x[kGroups];
    score.less(s, m, x);
    HEXAD_FOUR w[g] = exp2_falling(x[g], kAll ? __mmask16(-1) : __mmask16(seen >> g * kTileSide));
    return (w[0] + w[1]) + (w[2] + w[3]);
  }

  // A lane of it is the largest of the row's scores.
  HEXAD_INLINE vf top(const float* s, uint64_t seen) const {
    vf top[kGroups];
    score.value(s, top);
    const __m512 none = _mm512_set1_ps(-__builtin_inff());
    // A NaN gets lost.
    HEXAD_FOUR top[g] =
        (vf)_mm512_mask_max_ps(none, __mmask16(seen >> g * kTileSide), (__m512)top[g], none);
    return larger(larger(top[0], top[1]), larger(top[2], top[3]));
  }

  // Weights of the row's scores s for the keys that the bits of `seen` name, rounded, in order.
  // Returns what earlier weights are to be multiplied by. kReferred: a row that sees keys has its
  // reference (one without would get weights that are no numbers, and rise all the same).
  template <bool kAll, bool kReferred>
  HEXAD_INLINE float row(const float* s, uint64_t seen, float* m, float* sums, bf16* p) const {
    vf w[kGroups], t;
    float fall = 1;
    bool rises = score.rises || (!kReferred && *m == -__builtin_inff());
    if (__builtin_expect(!rises, 1)) {
      t = weigh<kAll>(s, *m, seen, w);
      rises = _mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(kRoom), _CMP_NLE_UQ) != 0;
    }
    if (__builtin_expect(rises, 0)) {
      fall = rise(s, kAll ? ~uint64_t(0) : seen, m, sums);
      t = weigh<kAll>(s, *m == -__builtin_inff() ? 0.f : *m, seen, w);
    }
    store(sums, load(sums) + t);
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; g += 2)
      _mm512_store_si512(p + g * kTileSide,
                         (__m512i)_mm512_cvtne2ps_pbh((__m512)w[g + 1], (__m512)w[g]));
    return fall;
  }

 private:
  __attribute__((noinline)) float rise(const float* s, uint64_t seen, float* m, float* sums) const {
    const float before = *m;
    const float tile = max_across(top(s, seen));
    if (!(tile > before)) return 1;
    *m = tile + score.headroom;
    if (before == -__builtin_inff()) return 1;  // there are no sums yet
    const vf fall = exp2_falling(set1((before - *m) * Score::kUnit), __mmask16(-1));
    store(sums, load(sums) * fall);
    return _mm512_cvtss_f32((__m512)fall);
  }
};

// Which of sixteen rows have seen no key.
HEXAD_INLINE __mmask16 unreferred(const float* m) {
  return _mm512_cmp_ps_mask(_mm512_load_ps(m), _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
}

// References of rows that see their first keys, from the rows' top() and how far above to stand.
inline void take_references(const vf* tops, const float* above, int count, float* m) {
  alignas(64) float most[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    f32x4 four[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) four[j] = halves_max(halves_max(tops[i + j]));
    const f32x4 ab = larger(__builtin_shufflevector(four[0], four[1], 0, 1, 4, 5),
                            __builtin_shufflevector(four[0], four[1], 2, 3, 6, 7));
    const f32x4 cd = larger(__builtin_shufflevector(four[2], four[3], 0, 1, 4, 5),
                            __builtin_shufflevector(four[2], four[3], 2, 3, 6, 7));
    const f32x4 each = larger(__builtin_shufflevector(ab, cd, 0, 2, 4, 6),
                              __builtin_shufflevector(ab, cd, 1, 3, 5, 7));
    memcpy(most + i, &each, sizeof each);
  }
  const __mmask16 some =
      _mm512_mask_cmp_ps_mask(unreferred(m) & __mmask16((1u << count) - 1), _mm512_load_ps(most),
                              _mm512_set1_ps(-__builtin_inff()), _CMP_NEQ_OQ);
  _mm512_mask_store_ps(m, some, (__m512)(load(most) + load(above)));
}

// As Softmax::row(); may change s.
template <bool kAll, bool kReferred = false, class Score>
HEXAD_INLINE float soften_row(const Score& score, float* s, uint64_t seen, float* m, float* sums,
                              bf16* p) {
  if constexpr (std::is_same<Score, CappedScore>::value) {
    if (__builtin_expect(score.far(s), 0)) {
      alignas(64) float factors[kTileKeys];
      const FactoredScore far = far_capped(score, s, factors);
      return Softmax<FactoredScore>{far}.template row<kAll, kReferred>(s, seen, m, sums, p);
    }
  }
  return Softmax<Score>{score}.template row<kAll, kReferred>(s, seen, m, sums, p);
}

// The end of sixteen rows' softmax: from references, totals, and sinks, if any, what the rows' sums
// are to be multiplied by, and the natural logarithms of the totals.
inline void close_softmax(Form form, const float* best, const float* total, const float* sinks,
                          float* factor, float* lse) {
  const vf none = set1(-__builtin_inff());
  const float unit = in_base_2(form) ? 0.693147180559945309f : 1.f;
  vf m = load(best) * set1(unit), sum = load(total), alpha = set1(1.f);
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
  const __m512 f = _mm512_set1_ps(factor);
  for (; d + kStepWidth <= dims; d += kStepWidth)
    _mm512_storeu_si512(
        out + d, (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(sums + d + kLanes), f),
                                              _mm512_mul_ps(_mm512_load_ps(sums + d), f)));
  for (; d + kLanes <= dims; d += kLanes) store(out + d, load(sums + d) * set1(factor));
  if (d < dims) store_first(out + d, load(sums + d) * set1(factor), dims - d);
}

}  // namespace
}  // namespace hexad
#endif
