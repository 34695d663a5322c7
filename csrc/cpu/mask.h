// What depends on the form that a comparison's result has: bits of a mask or lanes of a vector.
#pragma once

#include "cpu/vec.h"

namespace hexad {
namespace {

// a + b where x >= bound, else a: a comparison and an addition where the machine has masks.
HEXAD_INLINE vf add_from(vf a, vf b, vf x, vf bound) {
#if defined(__AVX512F__)
  const __mmask16 from = _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GE_OQ);
  return (vf)_mm512_mask_add_ps((__m512)a, from, (__m512)a, (__m512)b);
#else
  return select(at_least(x, bound), a + b, a);
#endif
}
// a, with 0 where the mask is set: a blend of AVX2 takes three steps.
HEXAD_INLINE reg cleared(IntOf<reg>::type m, reg a) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (reg)_mm256_andnot_ps((__m256)m, (__m256)a);
#else
  return select(m, set1_reg(0.f), a);
#endif
}
// a where bit n of the words is set, else b.
HEXAD_INLINE reg where_bit(IntOf<reg>::type words, int n, reg a, reg b) {
#if defined(__AVX512F__)
  const __mmask16 on = _mm512_test_epi32_mask((__m512i)words, _mm512_set1_epi32(int32_t(1u << n)));
  return (reg)_mm512_mask_blend_ps(on, (__m512)b, (__m512)a);
#else
  return select((words << (31 - n)) >> 31, a, b);
#endif
}
// Whether a mask is set in all lanes.
HEXAD_INLINE bool all_set(vi m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)m) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)(m.lo & m.hi)) == -1;
#else
  int32_t lanes[kLanes], all = -1;
  memcpy(lanes, &m, sizeof m);
  for (int i = 0; i < kLanes; ++i) all &= lanes[i];
  return all == -1;
#endif
}

}  // namespace
}  // namespace hexad
