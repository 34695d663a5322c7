// 16-byte accesses, and sums over a block or over the blocks of a row, in an order of their own.
#pragma once

#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

// One store of 16 bytes: of an assignment nvcc may make four.
template <class V>
__device__ inline void store_whole(void* p, const V& values) {
  static_assert(sizeof(V) == 16, "");
  uint4 raw;
  memcpy(&raw, &values, sizeof raw);
  __stwb(static_cast<uint4*>(p), raw);
}

// The first `count` elements at p, at most a pack; `aligned`: p is a multiple of 16 bytes.
template <class T>
__device__ inline Pack<T> load_pack(const T* p, int64_t count, bool aligned) {
  if (aligned && count >= Pack<T>::kSize) return *reinterpret_cast<const Pack<T>*>(p);
  Pack<T> found{};
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i)
    if (i < count) found.v[i] = p[i];
  return found;
}
template <class T>
__device__ inline void store_pack(T* p, const Pack<T>& values, int64_t count, bool aligned) {
  if (aligned && count >= Pack<T>::kSize) {
    store_whole(p, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i)
    if (i < count) p[i] = values.v[i];
}

// Whether p and p + stride elements of `size` bytes lie on multiples of 16 bytes.
inline bool in_packs(const void* p, int64_t stride, int64_t size) {
  return (reinterpret_cast<uintptr_t>(p) | uintptr_t(stride * size)) % 16 == 0;
}

// The sum over the block, the same order in every block of kThreads; on every thread.
template <int kThreads, class T>
__device__ inline T block_sum(T x) {
  HEXAD_SHARED(T, warps, [kThreads / 32]);
  for (int n = 16; n > 0; n /= 2) x += __shfl_xor_sync(kFullWarp, x, n);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = warps[0];
  for (int w = 1; w < kThreads / 32; ++w) sum += warps[w];
  return sum;
}

// Adds up a row's pieces, a block each, in one launch: the block that comes last adds all of them
// in the order of their places. `counter` is 0 before and after. Returns whether this was the last
// block; `sum` then is the row's, on every thread.
template <int kThreads>
__device__ inline bool row_sum(double& sum, double* partials, int32_t* counter, int64_t piece,
                               int64_t pieces) {
  sum = block_sum<kThreads>(sum);
  if (pieces == 1) return true;
  HEXAD_SHARED(bool, last, [1]);
  if (threadIdx.x == 0) {
    partials[piece] = sum;
    __threadfence();
    const unsigned most = unsigned(pieces - 1);
    last[0] = atomicInc(reinterpret_cast<unsigned*>(counter), most) == most;
  }
  __syncthreads();
  if (!last[0]) return false;
  __threadfence();
  const volatile double* others = partials;
  sum = 0;
  for (int64_t p = threadIdx.x; p < pieces; p += kThreads) sum += others[p];
  sum = block_sum<kThreads>(sum);
  return true;
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
