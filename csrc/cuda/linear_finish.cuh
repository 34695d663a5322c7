// What linear's kernels do with a finished sum: bias, activation or gate, residual, one rounding.
#pragma once

#include "cuda/wide.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kLinearWarps = 8, kLinearThreads = 32 * kLinearWarps;
constexpr int64_t kMostLinearRows = 16;

__device__ inline float sigmoid(float z) {
  return 1.f / (1.f + expf(-z));
}

__device__ inline float activate(float z, int activation) {
  switch (activation) {
    case 1:
      return z < 0 ? 0.f : z;
    case 2:
    case 8:
      return z * (0.5f * erfcf(z * -0.70710678118654752f));
    case 3:
      return z * sigmoid(fmaf(z * z * z, 0.044715f, z) * 1.5957691216057308f);
    case 4:
    case 7:
      return z * sigmoid(z);
    case 5:
      return tanhf(z);
    case 6:
      return sigmoid(z);
    default:
      return z;
  }
}

inline __host__ __device__ bool gated(const LinearArgs& a) {
  return a.activation >= 7;
}
inline __host__ __device__ int64_t width_of(const LinearArgs& a) {
  return gated(a) ? a.outputs / 2 : a.outputs;
}

// z, and of a gate its up, are row's products with the weight's rows `at` and width + at.
template <class T>
__device__ inline void finish(const LinearArgs& a, int64_t row, int64_t at, float z, float up) {
  const T* const bias = static_cast<const T*>(a.bias);
  if (bias) z += to_float(bias[at]);
  z = activate(z, a.activation);
  if (gated(a)) z *= bias ? up + to_float(bias[a.outputs / 2 + at]) : up;
  if (a.residual) z += to_float(static_cast<const T*>(a.residual)[row * a.residual_stride + at]);
  put(static_cast<T*>(a.y) + row * a.y_stride + at, z);
}

// Which row of the weight is number i of a block's: the second half are the first's ups where there
// are gates, else its neighbours.
__device__ inline int64_t weight_row(const LinearArgs& a, int64_t block, int i, int per_block) {
  const int half = per_block / 2;
  if (!gated(a)) return block * per_block + i;
  const int64_t at = block * half + i % half;
  return at < a.outputs / 2 ? (i < half ? 0 : a.outputs / 2) + at : a.outputs;
}

// The warps' sums [warp][i][column], in order, and what follows; column c is x's row first + c.
template <class T, int kOutputs, int kColumns>
__device__ inline void finish_block(const LinearArgs& a, int64_t block, int64_t first,
                                    const float* sums) {
  __syncthreads();
  const int outputs = gated(a) ? kOutputs / 2 : kOutputs;
  for (int at = int(threadIdx.x); at < outputs * kColumns; at += kLinearThreads) {
    const int i = at / kColumns, column = at % kColumns;
    const int64_t row = first + column, out = block * outputs + i;
    if (row >= a.rows || out >= width_of(a)) continue;
    float z = 0.f, up = 0.f;
    for (int w = 0; w < kLinearWarps; ++w) {
      const float* own = sums + (w * kOutputs + i) * kColumns + column;
      z += own[0];
      if (gated(a)) up += own[kOutputs / 2 * kColumns];
    }
    finish<T>(a, row, out, z, up);
  }
}

inline unsigned linear_blocks(const LinearArgs& a, const char* op, int outputs) {
  const int64_t each = gated(a) ? outputs / 2 : outputs;
  return blocks(op, (width_of(a) + each - 1) / each);
}

inline bool aligned_rows(const LinearArgs& a, int64_t size) {
  const int64_t x[1] = {a.x_stride}, w[1] = {a.weight_stride};
  return aligned_16(a.x, x, size) && aligned_16(a.weight, w, size);
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
