// Philox4x32-10 in vectors, 16 blocks each with a key of its own: the bits of philox.h. A compiler
// multiplies 32 bits to 64 as 64 by 64, at three times the time.
#pragma once

#include "cpu/vec.h"

namespace hexad {
namespace {

#if defined(__AVX512F__)
HEXAD_INLINE vi add_words(vi a, uint32_t b) {
  return (vi)_mm512_add_epi32((__m512i)a, _mm512_set1_epi32(int32_t(b)));
}
// The high and low words of a * b.
HEXAD_INLINE void multiply_words(vi a, uint32_t b, vi& high, vi& low) {
  const __m512i factor = _mm512_set1_epi32(int32_t(b));
  const __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  high = (vi)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  low = (vi)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}
#elif defined(__AVX2__)
HEXAD_INLINE vi add_words(vi a, uint32_t b) {
  const __m256i all = _mm256_set1_epi32(int32_t(b));
  return {(i32x8)_mm256_add_epi32((__m256i)a.lo, all), (i32x8)_mm256_add_epi32((__m256i)a.hi, all)};
}
HEXAD_INLINE void multiply_words(i32x8 a, uint32_t b, i32x8& high, i32x8& low) {
  const __m256i factor = _mm256_set1_epi32(int32_t(b));
  const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  high = (i32x8)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  low = (i32x8)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
HEXAD_INLINE void multiply_words(vi a, uint32_t b, vi& high, vi& low) {
  multiply_words(a.lo, b, high.lo, low.lo);
  multiply_words(a.hi, b, high.hi, low.hi);
}
#else
HEXAD_INLINE vi add_words(vi a, uint32_t b) {
  int32_t lane[kLanes];
  store(lane, a);
  for (int32_t& l : lane) l = int32_t(uint32_t(l) + b);
  return load(lane);
}
HEXAD_INLINE void multiply_words(vi a, uint32_t b, vi& high, vi& low) {
  int32_t h[kLanes], l[kLanes];
  store(l, a);
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t product = uint64_t(uint32_t(l[i])) * b;
    h[i] = int32_t(product >> 32), l[i] = int32_t(product);
  }
  high = load(h), low = load(l);
}
#endif

HEXAD_INLINE void philox(vi (&c)[4], vi k0, vi k1) {
  for (int round = 0; round < 10; ++round) {
    vi high0, low0, high1, low1;
    multiply_words(c[0], 0xD2511F53u, high0, low0);
    multiply_words(c[2], 0xCD9E8D57u, high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[2] = high0 ^ c[3] ^ k1;
    c[1] = low1, c[3] = low0;
    k0 = add_words(k0, 0x9E3779B9u), k1 = add_words(k1, 0xBB67AE85u);
  }
}

}  // namespace
}  // namespace hexad
