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

}  // namespace
}  // namespace hexad
#else
#define HEXAD_PAIRS 0
#endif
