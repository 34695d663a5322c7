// Dot products of four bytes in a lane: weights 0 to 255 with inputs -128 to 127, exact in int32.
// The instruction for it comes with AVX-512 VNNI; elsewhere inputs lie as pairs of 16 bits, the
// even and the odd ones of the four.
#pragma once

#include "cpu/vec.h"

namespace hexad {
namespace {

using ireg = IntOf<reg>::type;

HEXAD_INLINE ireg set1_ireg(int32_t x) {
  ireg v;
  splat(v, x);
  return v;
}
HEXAD_INLINE reg from_int(ireg v) {
  return __builtin_convertvector(v, reg);
}

#if defined(__AVX512VNNI__)
constexpr int kQuadWords = 1;  // words that hold four inputs

HEXAD_INLINE ireg dot_quad(ireg weights, const int32_t* inputs, ireg sum) {
  return (ireg)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(*inputs));
}
// 16 integers of 8 bits as four quads.
HEXAD_INLINE void store_quads(int32_t* to, vi v) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
}
#else
constexpr int kQuadWords = 2;

HEXAD_INLINE ireg dot_shorts(ireg a, int32_t b, ireg sum) {
#if defined(__AVX512BW__)
  return sum + (ireg)_mm512_madd_epi16((__m512i)a, _mm512_set1_epi32(b));
#elif defined(__AVX2__)
  return sum + (ireg)_mm256_madd_epi16((__m256i)a, _mm256_set1_epi32(b));
#else
  return sum + (a & 0xffff) * set1_ireg(int16_t(b)) + (a >> 16) * set1_ireg(b >> 16);
#endif
}
HEXAD_INLINE ireg dot_quad(ireg weights, const int32_t* inputs, ireg sum) {
  sum = dot_shorts(weights & 0x00ff00ff, inputs[0], sum);
  return dot_shorts((weights >> 8) & 0x00ff00ff, inputs[1], sum);
}
HEXAD_INLINE void store_quads(int32_t* to, vi v) {
  int32_t q[kLanes];
  store(q, v);
  for (int i = 0; i < kLanes; i += 4) {
    *to++ = int32_t(uint32_t(q[i]) & 0xffff) | int32_t(uint32_t(q[i + 2]) << 16);
    *to++ = int32_t(uint32_t(q[i + 1]) & 0xffff) | int32_t(uint32_t(q[i + 3]) << 16);
  }
}
#endif

}  // namespace
}  // namespace hexad
