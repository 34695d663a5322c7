// The machine's own limits, for benchmarks: what the vector units and the memory give at most.
#include "op/roofline.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

#if defined(__AVX512F__)
constexpr int kChains = 12;
#else
constexpr int kChains = 6;  // a 16-lane vector is two registers of sixteen
#endif

float fma_rounds(int64_t rounds) {
  vf acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = set1(float(i));
  const vf a = set1(0.999f), b = set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
  vf total = zero();
  for (int i = 0; i < kChains; ++i) total = total + acc[i];
  return sum(total);
}

#if defined(__AVX512BF16__)
float dot_rounds(int64_t rounds) {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(float(i));
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00), b = (__m512bh)_mm512_set1_epi16(0x3a00);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  __m512 total = acc[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, acc[i]);
  return _mm512_reduce_add_ps(total);
}
#endif

float read_range(const float* p, int64_t n) {
  vf acc[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) acc[j] = acc[j] + load(p + i + j * kLanes);
  return sum(acc[0] + acc[1] + acc[2] + acc[3]);
}

}  // namespace

namespace HEXAD_ISA {

void roofline(const RooflineArgs& a) {
  *a.flops = 0;
  if (a.kind <= 1) {
    parallel_for(a.threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
#if defined(__AVX512BF16__)
        if (a.kind == 1) {
          a.sink[t] = dot_rounds(a.count);
          continue;
        }
#endif
        a.sink[t] = fma_rounds(a.count);
      }
    });
    *a.flops = double(a.threads) * double(a.count) * kChains * kLanes * (a.kind == 1 ? 4 : 2);
    return;
  }
  const int64_t grain = (a.count / a.threads + kLanes) / kLanes * kLanes;
  parallel_for(a.count, grain, [&](int64_t begin, int64_t end) {
    if (a.kind == 2) {
      a.sink[begin / grain] = read_range(a.source + begin, end - begin);
    } else {
      std::copy(a.source + begin, a.source + end, a.target + begin);
    }
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
