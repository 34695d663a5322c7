// float16 in memory, float in registers: as bf16 in vec.h. Stores round to nearest even.
#pragma once

#include "cpu/vec.h"

namespace hexad {
namespace {

struct f16 {
  uint16_t raw;
};

HEXAD_INLINE vf load(const f16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  const __m128i* q = (const __m128i*)p;
  return {(f32x8)_mm256_cvtph_ps(_mm_loadu_si128(q)),
          (f32x8)_mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
#else
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    _Float16 h;
    memcpy(&h, p + i, sizeof h);
    lanes[i] = float(h);
  }
  return load(lanes);
#endif
}
HEXAD_INLINE void store(f16* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  __m128i* q = (__m128i*)p;
  _mm_storeu_si128(q, _mm256_cvtps_ph((__m256)v.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph((__m256)v.hi, _MM_FROUND_TO_NEAREST_INT));
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; ++i) {
    const _Float16 h = _Float16(lanes[i]);
    memcpy(p + i, &h, sizeof h);
  }
#endif
}
HEXAD_INLINE void store_first(f16* p, vf v, int64_t n) {
  f16 buffer[kLanes];
  store(buffer, v);
  memcpy(p, buffer, n * sizeof(f16));
}
HEXAD_INLINE vf load_part(const f16* p, int64_t n) {
  f16 buffer[kLanes] = {};
  memcpy(buffer, p, n * sizeof(f16));
  return load(buffer);
}
HEXAD_INLINE float to_float(f16 x) {
  f16 buffer[kLanes] = {x};
  float lanes[kLanes];
  store(lanes, load(buffer));
  return lanes[0];
}

}  // namespace
}  // namespace hexad
