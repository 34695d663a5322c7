// Rotary position embedding of one row, kWide pairs at a time: pair i is (i, i + n/2), or the
// neighbours (2i, 2i + 1) when interleaved.
#pragma once

#include "cuda/wide.cuh"

namespace hexad {
namespace cuda {
namespace {

// Where the elements of kWide pairs lie in their row: two runs of kWide, as far as they exist.
struct Runs {
  int64_t at[2], count[2];
};

template <class T>
__device__ inline Runs runs_of(int64_t pair, int64_t n, bool interleaved) {
  const int64_t half = n / 2;
  if (interleaved)
    return {{2 * pair, 2 * pair + kWide<T>}, {n - 2 * pair, n - 2 * pair - kWide<T>}};
  return {{pair, half + pair}, {half - pair, half - pair}};
}

// Pairs `pair` and on of row x, rotated; cos and sin are the row's position's.
template <class T>
__device__ inline Runs rotated(const T* x, const float* cos, const float* sin, int64_t pair,
                               int64_t n, bool interleaved, bool aligned, float (&y)[2][kWide<T>]) {
  constexpr int kPairs = kWide<T>;
  const Runs runs = runs_of<T>(pair, n, interleaved);
  float in[2][kPairs];
  load_wide(x + runs.at[0], runs.count[0], aligned, in[0]);
  load_wide(x + runs.at[1], runs.count[1], aligned, in[1]);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const bool there = pair + i < n / 2;
    const float c = there ? cos[pair + i] : 0.f, s = there ? sin[pair + i] : 0.f;
    const float a = interleaved ? in[2 * i / kPairs][2 * i % kPairs] : in[0][i];
    const float b = interleaved ? in[2 * i / kPairs][2 * i % kPairs + 1] : in[1][i];
    const float turned[2] = {fmaf(a, c, -(b * s)), fmaf(b, c, a * s)};
    if (interleaved)
      y[2 * i / kPairs][2 * i % kPairs] = turned[0],
                                y[2 * i / kPairs][2 * i % kPairs + 1] = turned[1];
    else
      y[0][i] = turned[0], y[1][i] = turned[1];
  }
  return runs;
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
