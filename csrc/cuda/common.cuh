// What every CUDA kernel file shares: dtypes, rounding, launch checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace hexad {
namespace cuda {

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(HEXAD_CUDA, "%s: %s", op, cudaGetErrorString(error));
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline void put(float* p, float x) {
  *p = x;
}
__device__ inline void put(__nv_bfloat16* p, float x) {
  *p = __float2bfloat16_rn(x);
}

}  // namespace cuda
}  // namespace hexad
