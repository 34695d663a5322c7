// bfloat16 in memory, float in registers. Stores round to nearest even; NaN stays NaN. The end of
// vec.h includes this.
#pragma once

namespace hexad {
namespace {

struct bf16 {
  uint16_t raw;
};
HEXAD_INLINE float to_float(bf16 x) {
  uint32_t u = uint32_t(x.raw) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
HEXAD_INLINE bf16 to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 0x40)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
#if defined(__AVX512BW__)
// Where the 16-bit words of a register come from: its high halves from words 0 to 15, or back.
alignas(64) constexpr uint16_t kSpread[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                              0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
alignas(64) constexpr uint16_t kGathered[32] = {1,  3,  5,  7,  9,  11, 13, 15,
                                                17, 19, 21, 23, 25, 27, 29, 31};
HEXAD_INLINE vf spread(__m256i raw) {
  return (vf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, load<__m512i>(kSpread),
                                            _mm512_castsi256_si512(raw));
}
#endif
HEXAD_INLINE vf load(const bf16* p) {
#if defined(__AVX512BW__)
  return spread(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  const __m128i* q = (const __m128i*)p;
  return {(f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16),
          (f32x8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16)};
#else
  float f[kLanes];
  for (int i = 0; i < kLanes; ++i) f[i] = to_float(p[i]);
  return load(f);
#endif
}
HEXAD_INLINE void store(bf16* p, vf v) {
#if defined(__AVX512BW__)
  __m512i u = (__m512i)v;
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
  r = _mm512_permutexvar_epi16(load<__m512i>(kGathered), r);
  _mm256_storeu_si256((__m256i*)p, _mm512_castsi512_si256(r));
#else
  float f[kLanes];
  store(f, v);
  for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(f[i]);
#endif
}
HEXAD_INLINE vf load_first(const bf16* p, int64_t n, float fill = 0.f) {
  bf16 buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = to_bf16(fill);
  memcpy(buffer, p, n * sizeof(bf16));
  return load(buffer);
}
HEXAD_INLINE void store_first(bf16* p, vf v, int64_t n) {
  bf16 buffer[kLanes];
  store(buffer, v);
  memcpy(p, buffer, n * sizeof(bf16));
}
HEXAD_INLINE float to_float(float x) {
  return x;
}
HEXAD_INLINE void put(float* p, float x) {
  *p = x;
}
HEXAD_INLINE void put(bf16* p, float x) {
  *p = to_bf16(x);
}

HEXAD_INLINE vf load_part(const bf16* p, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return spread(_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
#else
  return load_first(p, n);
#endif
}

}  // namespace
}  // namespace hexad
