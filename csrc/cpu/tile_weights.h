// P and dS of a tile of attention's backward, as factors of the products that follow.
#pragma once

#include "cpu/math.h"
#include "cpu/tile_product.h"

namespace hexad {
namespace {

template <class U>
struct Weights;

template <>
struct Weights<Floats> {
  static constexpr int kQueries = 64, kKeys = 128;
  static constexpr int64_t kRoom = 2 * kQueries * kKeys;
  float *p, *ds;

  explicit Weights(float* room) : p(room), ds(room + kQueries * kKeys) {}
  static HEXAD_INLINE vf exp(vf x) { return exp_falling(x); }
  // Row r, columns c .. c + 31.
  HEXAD_INLINE void put(int64_t r, int64_t c, const vf (&w)[1][2], const vf (&g)[1][2]) const {
    for (int n = 0; n < 2; ++n) {
      store(p + r * kKeys + c + n * kLanes, w[0][n]);
      store(ds + r * kKeys + c + n * kLanes, g[0][n]);
    }
  }
  // dS for a sum over keys, from row r and key c on.
  HEXAD_INLINE Factor rows(int64_t r, int64_t c) const {
    return {reinterpret_cast<const char*>(ds + r * kKeys + c), kKeys * 4, 4};
  }
};

#if HEXAD_PAIRS
template <>
struct Weights<Pairs> {
  static constexpr int kQueries = 128, kKeys = 128;
  static constexpr int64_t kRoom = 3 * kQueries / 2 * kKeys;
  float *p, *ds;  // units of rows 2i and 2i + 1
  float* along;   // dS in units of keys 2j and 2j + 1

  explicit Weights(float* room)
      : p(room), ds(p + kQueries / 2 * kKeys), along(ds + kQueries / 2 * kKeys) {}

  // Enough for what is rounded to bfloat16: relative error below 3e-6, a minimax fit.
  static HEXAD_INLINE vf exp(vf x) {
    // A NaN is the second operand, which max gives back.
    const __m512 bound = _mm512_max_ps(_mm512_set1_ps(-200.f), (__m512)x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bound, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf r = fma((vf)n, set1(-0.693147181f), (vf)bound);
    vf y = set1(0.0414586067f);
    y = fma(y, r, set1(0.1679090708f));
    y = fma(y, r, set1(0.500043571f));
    y = fma(y, r, set1(0.9999634027f));
    y = fma(y, r, set1(0.9999992847f));
    return (vf)_mm512_scalef_ps((__m512)y, n);
  }
  static HEXAD_INLINE vf together(vf even, vf odd) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (vf)_mm512_permutexvar_epi16(order, (__m512i)both);
  }
  HEXAD_INLINE void put(int64_t r, int64_t c, const vf (&w)[2][2], const vf (&g)[2][2]) const {
    for (int n = 0; n < 2; ++n) {
      store(p + r / 2 * kKeys + c + n * kLanes, together(w[0][n], w[1][n]));
      store(ds + r / 2 * kKeys + c + n * kLanes, together(g[0][n], g[1][n]));
      store(along + (r + n) * (kKeys / 2) + c / 2,
            (vf)(__m512i)_mm512_cvtne2ps_pbh((__m512)g[n][1], (__m512)g[n][0]));
    }
  }
  HEXAD_INLINE Factor rows(int64_t r, int64_t c) const {
    return {reinterpret_cast<const char*>(along + r * (kKeys / 2) + c / 2), kKeys * 2, 4};
  }
};
#endif

}  // namespace
}  // namespace hexad
