// What the sums of a row's products with a tile of 64 keys become ahead of the softmax of bfloat16
// on AMX, the same in prefill and decode: scale, soft cap, ALiBi, floating mask. value() gives the
// scores, less() the logarithms to base 2 of the weights, the scores less a reference. Scores and
// references are logarithms to base 2 themselves, or natural ones where a mask may go down to the
// least float.
#pragma once

#include "cpu/amx.h"

#if HEXAD_TILES

#include <algorithm>
#include <cmath>

#include "cpu/math.h"

namespace hexad {
namespace {

constexpr float kLog2e = 1.44269504088896341f;

#define HEXAD_FOUR _Pragma("GCC unroll 4") for (int g = 0; g < 4; ++g)

// a b - c
HEXAD_INLINE vf multiply_less(vf a, vf b, vf c) {
  return (vf)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c);
}

enum class Form { plain, capped, sloped, biased, biased_bf16, general };

// biased: by a floating mask; narrow: that is bfloat16.
HEXAD_INLINE Form form_of(bool biased, bool narrow, float scale, float softcap,
                          const float* slopes) {
  // Beyond, the factors of a capped score may leave the range of floats.
  const float inward = std::fabs(scale / softcap);
  const bool usual = softcap > 1e-6f && softcap < 1e6f && inward > 1e-4f && inward < 1e4f;
  if (softcap > 0 && (biased || slopes || !usual)) return Form::general;
  if (biased) return slopes ? Form::general : narrow ? Form::biased_bf16 : Form::biased;
  return softcap > 0 ? Form::capped : slopes ? Form::sloped : Form::plain;
}
HEXAD_INLINE bool in_base_2(Form form) {
  return form <= Form::sloped;
}

// A reference stands `headroom` above the scores it is taken from, where later ones may be expected
// to be higher by so much; with `rises` it is to follow at once. kLasting: a row's scores may be
// asked for again. kLong: the softmax of 32 rows takes longer than the 350 ns after which the tile
// unit falls asleep; it then takes 250 ns to wake.
struct Steady {
  static constexpr float headroom = 0;
  static constexpr bool rises = false, kLasting = true, kLong = true;
};

struct BaseTwo : Steady {
  static constexpr float kUnit = 1;  // of a reference, in logarithms to base 2
};

struct PlainScore : BaseTwo {
  static constexpr bool kLong = false;
  float c;  // scale
  explicit PlainScore(float scale) : c(scale * kLog2e) {}
  HEXAD_INLINE void value(const float* s, vf* x) const {
    HEXAD_FOUR x[g] = load(s + g * kLanes) * set1(c);
  }
  HEXAD_INLINE void less(const float* s, float m, vf* x) const {
    HEXAD_FOUR x[g] = multiply_less(load(s + g * kLanes), set1(c), set1(m));
  }
};

// cap tanh(s scale / cap). Scores mostly lie far below the cap, where the score is s times an even
// polynomial of s, of kTerms terms.
template <int kTerms>
struct Capped : BaseTwo {
  static constexpr bool kLasting = false;  // far_capped() changes them
  float inward, softcap;
  float c[kTerms], within;  // the polynomial, and below which s^2 it holds
  // fit: tanh(x) / x for x^2 below `most`.
  Capped(float scale, float softcap, const float* fit, float most)
      : inward(scale / softcap), softcap(softcap) {
    const float square = inward * inward;
    within = most / square;
    float power = scale * kLog2e;
    for (int i = 0; i < kTerms; ++i, power *= square) c[i] = fit[i] * power;
  }
  // Whether a row has scores that the polynomial does not hold for.
  HEXAD_INLINE bool far(const float* s) const {
    vf z[4];
    HEXAD_FOUR z[g] = load(s + g * kLanes) * load(s + g * kLanes);
    // As integers, so that a hidden key's NaN covers no other.
    const auto larger = [](vf a, vf b) {
      return (vf)_mm512_maskz_max_epu32(0xffff, (__m512i)a, (__m512i)b);
    };
    const vf most = larger(larger(z[0], z[1]), larger(z[2], z[3]));
    return _mm512_cmpge_epu32_mask((__m512i)most, (__m512i)set1(within)) != 0;
  }
  HEXAD_INLINE void factors(const float* s, vf* f) const {
    vf z[4];
    HEXAD_FOUR z[g] = load(s + g * kLanes) * load(s + g * kLanes);
    HEXAD_FOUR f[g] = set1(c[kTerms - 1]);
    for (int i = kTerms - 2; i >= 0; --i) HEXAD_FOUR f[g] = fma(f[g], z[g], set1(c[i]));
  }
  HEXAD_INLINE void value(const float* s, vf* x) const {
    factors(s, x);
    HEXAD_FOUR x[g] = load(s + g * kLanes) * x[g];
  }
  HEXAD_INLINE void less(const float* s, float m, vf* x) const {
    factors(s, x);
    HEXAD_FOUR x[g] = multiply_less(load(s + g * kLanes), x[g], set1(m));
  }
};

// Minimax fits in float64: for |x| < 0.15 and 0.3, relative errors below 2.4e-8 and 1.1e-8.
constexpr float kFitClose[] = {1.f, -0.33332172f, 0.13165942f};
constexpr float kFitNear[] = {1.f, -0.33332962f, 0.13312598f, -0.050222438f};

// A row of scores that all are close; others are for far_capped(), which takes the same factors for
// those of theirs that are, whatever the row's other keys hold.
struct CappedScore : Capped<3> {
  Capped<4> near;
  CappedScore(float scale, float softcap)
      : Capped(scale, softcap, kFitClose, 0.0225f), near(scale, softcap, kFitNear, 0.09f) {}
};

// s times a factor.
struct FactoredScore : BaseTwo {
  const float* factors;
  explicit FactoredScore(const float* factors) : factors(factors) {}
  HEXAD_INLINE void value(const float* s, vf* x) const {
    HEXAD_FOUR x[g] = load(s + g * kLanes) * load(factors + g * kLanes);
  }
  HEXAD_INLINE void less(const float* s, float m, vf* x) const {
    HEXAD_FOUR x[g] = multiply_less(load(s + g * kLanes), load(factors + g * kLanes), set1(m));
  }
};

// Where x^2 is not below `within`, lane by lane.
HEXAD_INLINE __mmask16 beyond(vf x, float within) {
  return _mm512_cmp_ps_mask((__m512)(x * x), _mm512_set1_ps(within), _CMP_GE_OQ);
}

// Makes s of a row that has scores too far for any polynomial their capped ones, with factors of 1.
inline __attribute__((noinline)) FactoredScore far_capped(const CappedScore& close, float* s,
                                                          float* factors) {
  const Capped<4>& near = close.near;
  vf f[4], wide[4];
  close.factors(s, f);
  near.factors(s, wide);
  HEXAD_FOUR store(factors + g * kLanes,
                   (vf)_mm512_mask_mov_ps((__m512)f[g], beyond(load(s + g * kLanes), close.within),
                                          (__m512)wide[g]));
  if (!near.far(s)) return FactoredScore(factors);
  for (int g = 0; g < 4; ++g) {
    const vf x = load(s + g * kLanes), y = x * set1(near.inward);
    // tanh |y| = (1 - e) / (1 + e) for e = exp(-2 |y|), which is far from 1 here.
    const vf e = exp_falling(abs(y) * set1(-2.f));
    const vf t = (set1(1.f) - e) / (set1(1.f) + e) * set1(near.softcap * kLog2e);
    const vf signed_t = from_bits(bits(t) | (bits(y) & set1i(int32_t(0x80000000))));
    const __mmask16 far = beyond(x, near.within);
    _mm512_mask_store_ps(factors + g * kLanes, far, _mm512_set1_ps(1.f));
    _mm512_mask_store_ps(s + g * kLanes, far, (__m512)signed_t);
  }
  return FactoredScore(factors);
}

// A row's slope, and where it stands from the tile's first key on.
struct Place {
  float slope, at;
};

// s scale - slope |at - j|; with all keys on one side s scale -+ slope (at - j), whose constant
// part the reference takes.
struct SlopedScore : BaseTwo {
  float c, slope, at;
  bool aside, rises;
  float headroom;
  SlopedScore(float scale, Place p) : c(scale * kLog2e), slope(p.slope * kLog2e), at(p.at) {
    // Steeper, the constant part would round too coarsely.
    aside = (at >= 63 || at <= 0) && slope * slope < 1.f / 256;
    // More would cost a total that comes out low its last bits.
    constexpr float kMost = 12;
    headroom = std::min(std::max(0.f, slope * (at - 63)), kMost);
    rises = slope * 64 > kMost && at > 63;
    if (!aside || at <= 0) slope = -slope;
  }
  HEXAD_INLINE void value(const float* s, vf* x) const { less(s, 0, x); }
  HEXAD_INLINE void less(const float* s, float m, vf* x) const {
    const vf from = aside ? fma(set1(slope), set1(at), set1(m)) : set1(m);
    HEXAD_FOUR x[g] = multiply_less(load(s + g * kLanes), set1(c), from);
    if (__builtin_expect(aside, 1))
      HEXAD_FOUR x[g] = fma(key(g), set1(slope), x[g]);
    else
      HEXAD_FOUR x[g] = fma(abs(set1(at) - key(g)), set1(slope), x[g]);
  }

 private:
  static HEXAD_INLINE vf key(int g) {
    alignas(64) static const float keys[] = {
        0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
        22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
        44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    return load(keys + g * kLanes);
  }
};

// For scores in natural logarithms.
template <class Score>
struct Natural : Steady {
  static constexpr float kUnit = kLog2e;
  // A difference first: a score may be the least float.
  HEXAD_INLINE void less(const float* s, float m, vf* x) const {
    static_cast<const Score*>(this)->value(s, x);
    HEXAD_FOUR x[g] = (x[g] - set1(m)) * set1(kLog2e);
  }
};

HEXAD_INLINE void widen(const float* p, vf* x) {
  HEXAD_FOUR x[g] = load(p + g * kLanes);
}
// Words to the upper halves of lanes, one permutation a vector.
HEXAD_INLINE void widen(const bf16* p, vf* x) {
  const __m512i low = load<__m512i>(kSpread), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const __m512i words = _mm512_loadu_si512(p + 2 * h * kLanes);
    x[2 * h] = (vf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, low, words);
    x[2 * h + 1] = (vf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, high, words);
  }
}

// E: of the mask, which lies at `bias` for the tile's keys.
template <class E>
struct BiasedScore : Natural<BiasedScore<E>> {
  float scale;
  const E* bias;
  BiasedScore(float scale, const E* bias) : scale(scale), bias(bias) {}
  HEXAD_INLINE void value(const float* s, vf* x) const {
    widen(bias, x);
    HEXAD_FOUR x[g] = fma(load(s + g * kLanes), set1(scale), x[g]);
  }
  // To base 2 at once, unless the reference is near the least float.
  HEXAD_INLINE void less(const float* s, float m, vf* x) const {
    if (__builtin_expect(m < -1e38f, 0)) return Natural<BiasedScore<E>>::less(s, m, x);
    widen(bias, x);
    const vf from = set1(m * kLog2e);
    HEXAD_FOUR x[g] = multiply_less(x[g], set1(kLog2e), from);
    HEXAD_FOUR x[g] = fma(load(s + g * kLanes), set1(scale * kLog2e), x[g]);
  }
};

// Scores that stand ready.
struct ReadyScore : Natural<ReadyScore> {
  static constexpr bool kLasting = false;  // general() made them in place
  HEXAD_INLINE void value(const float* s, vf* x) const { HEXAD_FOUR x[g] = load(s + g * kLanes); }
};

// Makes s of a row its scores, by several options at a time. bias: null for none.
inline __attribute__((noinline)) ReadyScore general(float* s, float scale, float softcap,
                                                    Place place, const float* bias) {
  for (int j = 0; j < 4 * kLanes; j += kLanes) {
    vf x = load(s + j) * set1(scale);
    if (softcap > 0) x = set1(softcap) * tanh(x / set1(softcap));
    const vf key = to_float(iota()) + set1(float(j));
    if (place.slope != 0) x = fma(set1(-place.slope), abs(set1(place.at) - key), x);
    store(s + j, bias ? x + load(bias + j) : x);
  }
  return {};
}

}  // namespace
}  // namespace hexad
#endif
