// Pairs of bfloat16 in a lane: what the level avx512bf16 adds to vec.h. A lane's dot product is
// sum + odd * odd + even * even in float32 with subnormals taken as zero, which other levels do not
// reproduce, so only bfloat16 kernels use it, under `#if HEXAD_PAIRS`.
#pragma once

#include "cpu/vec.h"

#if defined(__AVX512BF16__)
#define HEXAD_PAIRS 1

namespace hexad {
namespace {

using pairs = __m512bh;  // 16 lanes: elements 2i and 2i + 1

HEXAD_INLINE pairs load_pairs(const void* p) {
  return (pairs)_mm512_loadu_si512(p);
}
// One pair, 4 bytes, in every lane.
HEXAD_INLINE pairs spread_pair(const void* p) {
  int32_t both;
  memcpy(&both, p, sizeof both);
  return (pairs)_mm512_set1_epi32(both);
}
HEXAD_INLINE vf dot(pairs a, pairs b, vf sum) {
  return (vf)_mm512_dpbf16_ps((__m512)sum, a, b);
}
// Two rows of numbers as one of pairs: evens[i], odds[i] for 32 i, of which the first n_evens and
// n_odds are read and the others are zero.
HEXAD_INLINE void interleave(const bf16* evens, const bf16* odds, int n_evens, int n_odds,
                             float* to) {
  const auto first = [](int n) { return __mmask32(n < 32 ? (1u << n) - 1 : ~0u); };
  const __m512i a = _mm512_maskz_loadu_epi16(first(n_evens), evens);
  const __m512i b = _mm512_maskz_loadu_epi16(first(n_odds), odds);
  alignas(64) static const uint16_t order[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                 37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = load<__m512i>(order);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(to + kLanes, _mm512_permutex2var_epi16(a, high, b));
}
// Sixteen pairs: evens and odds rounded to nearest even.
HEXAD_INLINE vf pair_up(vf evens, vf odds) {
  alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odds, (__m512)evens);
  return (vf)_mm512_permutexvar_epi16(load<__m512i>(order), both);
}

}  // namespace
}  // namespace hexad
#else
#define HEXAD_PAIRS 0
#endif
