// The products of attention with a lane per query row: small panels of accumulators that stay in
// registers. The left factor is read one number at a time where it lies, so keys and values need no
// packing; the right one is a row of lanes at each step of the sum.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/math.h"
#include "cpu/pairs.h"

namespace hexad {
namespace {

constexpr int kRows = 48;  // query rows that share a block: lanes of a panel

// Where step k of row m of the left factor lies: 4 bytes, a float or a pair of bfloat16.
struct Listed {
  const char* const* p;  // rows anywhere, steps one after another
  HEXAD_INLINE const char* at(int m, int64_t k) const { return p[m] + 4 * k; }
  HEXAD_INLINE Listed down(int64_t m) const { return {p + m}; }
};
struct Strided {
  const char* p;
  int64_t step;  // from step to step, in bytes; rows one after another
  HEXAD_INLINE const char* at(int m, int64_t k) const { return p + k * step + 4 * m; }
  HEXAD_INLINE Strided down(int64_t m) const { return {p + 4 * m, step}; }
};

HEXAD_INLINE reg spread(const char* p) {
  float x;
  memcpy(&x, p, sizeof x);
  return set1_reg(x);
}

// A sum goes in chains of kChain steps, counted from step 0, each from zero, which are added up in
// order: one chain over all steps would round too coarsely. 0: one chain (of pairs, whose factors
// are rounded more than their sum is).
//
// One step of a sum. `seen`: the same but for lanes whose weight w is marked by its sign bit, which
// keep c; there the value a may be anything.
struct Multiply {
  static constexpr int64_t kChain = 32;
  static HEXAD_INLINE reg add(reg a, reg b, reg c) { return fma(a, b, c); }
  static HEXAD_INLINE reg seen(reg a, reg w, reg c) {
#if defined(__AVX512F__)
    const __mmask16 on = _mm512_cmpge_epi32_mask((__m512i)w, _mm512_setzero_si512());
    return (reg)_mm512_mask3_fmadd_ps((__m512)a, (__m512)w, (__m512)c, on);
#elif defined(__AVX2__)
    return (reg)_mm256_blendv_ps((__m256)fma(a, w, c), (__m256)c, (__m256)w);
#else
    return (i32x4)w < 0 ? c : fma(a, w, c);
#endif
  }
};
#if HEXAD_PAIRS
struct MultiplyPairs {
  static constexpr int64_t kChain = 0;
  static HEXAD_INLINE reg add(reg a, reg b, reg c) { return dot((pairs)a, (pairs)b, c); }
  // A half that is not seen counts as weight 0 with value 0.
  static HEXAD_INLINE reg seen(reg a, reg w, reg c) {
    const __m512i words = (__m512i)w;
    const __mmask32 on = ~_mm512_movepi16_mask(words);
    const __mmask16 any = ~_mm512_movepi32_mask(words & _mm512_slli_epi32(words, 16));
    return (reg)_mm512_mask_dpbf16_ps((__m512)c, any,
                                      (__m512bh)_mm512_maskz_mov_epi16(on, (__m512i)a),
                                      (__m512bh)_mm512_maskz_mov_epi16(on, words));
  }
};
#endif

// c[m][lane] = c[m][lane] * factor[lane] + sum over k in [begin, end) of a(m, k) * b[k][lane], k in
// order; from 0 without a factor. Rows of b and c are kRows apart. Where a sum has chains, begin
// and end may cut one only if all that is left out is hidden.
template <class Op, bool kHiding, int M, int N, class Left>
void panel(float* c, const float* factor, Left a, const float* b, int64_t begin, int64_t end) {
  constexpr bool kChains = Op::kChain > 0;
  reg scale[N];
  if (factor)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) scale[n] = load_reg(factor + n * kRegLanes);
  bool first = true;
  do {
    reg sum[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        sum[m][n] = kChains  ? set1_reg(-0.f)  // what changes nothing it is added to
                    : factor ? load_reg(c + m * kRows + n * kRegLanes) * scale[n]
                             : set1_reg(0.f);
    const int64_t upto =
        kChains ? std::min(end, begin / Op::kChain * Op::kChain + Op::kChain) : end;
#pragma GCC unroll 4
    for (; begin < upto; ++begin) {
      reg right[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) right[n] = load_reg(b + begin * kRows + n * kRegLanes);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const reg left = spread(a.at(m, begin));
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
          sum[m][n] =
              kHiding ? Op::seen(left, right[n], sum[m][n]) : Op::add(left, right[n], sum[m][n]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        float* to = c + m * kRows + n * kRegLanes;
        if (kChains && !first)
          sum[m][n] = load_reg(to) + sum[m][n];
        else if (kChains && factor)
          sum[m][n] = load_reg(to) * scale[n] + sum[m][n];
        store_reg(to, sum[m][n]);
      }
    first = false;
  } while (begin < end);
}

// Accumulators of a panel: kHigh rows by kWide registers.
constexpr int kWide = 3;
constexpr int kHigh = kAccumulators / kWide;

template <class Op, bool kHiding, int N, class Left>
void column(float* c, const float* factor, Left a, const float* b, int64_t begin, int64_t end,
            int64_t rows) {
  int64_t m = 0;
  for (; m + kHigh <= rows; m += kHigh)
    panel<Op, kHiding, kHigh, N>(c + m * kRows, factor, a.down(m), b, begin, end);
  if constexpr (kHigh > 4)
    if (rows - m >= 4) {
      panel<Op, kHiding, 4, N>(c + m * kRows, factor, a.down(m), b, begin, end);
      m += 4;
    }
  if (rows - m >= 2) {
    panel<Op, kHiding, 2, N>(c + m * kRows, factor, a.down(m), b, begin, end);
    m += 2;
  }
  if (rows > m) panel<Op, kHiding, 1, N>(c + m * kRows, factor, a.down(m), b, begin, end);
}

// All of `rows` by the lanes [lane, upto), both multiples of kLanes.
template <class Op, bool kHiding, class Left>
void product(float* c, const float* factor, Left a, const float* b, int64_t begin, int64_t end,
             int64_t rows, int lane, int upto) {
  for (; lane + kWide * kRegLanes <= upto; lane += kWide * kRegLanes)
    column<Op, kHiding, kWide>(c + lane, factor ? factor + lane : nullptr, a, b + lane, begin, end,
                               rows);
  for (; lane + 2 * kRegLanes <= upto; lane += 2 * kRegLanes)
    column<Op, kHiding, 2>(c + lane, factor ? factor + lane : nullptr, a, b + lane, begin, end,
                           rows);
  for (; lane < upto; lane += kRegLanes)
    column<Op, kHiding, 1>(c + lane, factor ? factor + lane : nullptr, a, b + lane, begin, end,
                           rows);
}

}  // namespace
}  // namespace hexad
