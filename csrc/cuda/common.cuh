// What every CUDA kernel file shares: launches, shared memory, dtypes, warp sums.
//
// Kernel files compile with nvcc and, for tests on machines without a GPU, with g++ against an
// emulator; so they launch through launch(), and declare shared arrays through the macros.
#pragma once

#ifdef HEXAD_CUDA_EMULATOR
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define HEXAD_SHARED(type, name, dims) __shared__ type name dims
#define HEXAD_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char hexad_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(hexad_dynamic_shared)
#endif

#include "cuda/launch.h"

namespace hexad {
namespace cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr unsigned kFullWarp = 0xffffffffu;

// Enqueues kernel(args...) on the stream; `op` names the culprit when the launch is refused.
template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            hexad_stream stream, Args... args) {
#ifdef HEXAD_CUDA_EMULATOR
  (void)stream;
  const char* error = cuda_emulator::run(grid, block, shared_bytes, [&] { kernel(args...); });
  if (error) fail(HEXAD_CUDA, "%s: %s", op, error);
#else
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 << 10)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(shared_bytes));
  if (status == cudaSuccess) {
    void* pointers[] = {&args...};
    status = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                              shared_bytes, static_cast<cudaStream_t>(stream));
  }
  if (status != cudaSuccess) {
    cudaGetLastError();  // the next launch starts from a clean slate
    fail(HEXAD_CUDA, "%s: %s", op, cudaGetErrorString(status));
  }
#endif
}

// The x extent of a grid, refused when it is beyond the limit of 2^31 - 1 blocks.
inline unsigned blocks(const char* op, int64_t count) {
  if (count > 0x7fffffff)
    fail(HEXAD_INVALID, "%s: %lld blocks, a grid holds 2^31 - 1", op, (long long)count);
  return unsigned(count);
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(f16 x) {
  return __half2float(x);
}
__device__ inline void put(float* p, float x) {
  *p = x;
}
__device__ inline void put(bf16* p, float x) {
  *p = __float2bfloat16_rn(x);
}
__device__ inline void put(f16* p, float x) {
  *p = __float2half_rn(x);
}

// Butterflies: every lane gets the same bits.
__device__ inline float warp_sum(float x) {
  for (int n = 16; n > 0; n /= 2) x += __shfl_xor_sync(kFullWarp, x, n);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int n = 16; n > 0; n /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, n));
  return x;
}

}  // namespace cuda
}  // namespace hexad
