// Hopper's own instructions (sm_90a) as functions: barriers in shared memory that count arrivals
// and bytes, bulk copies by tensor maps (TMA), wgmma, named barriers, register counts of
// warpgroups. tests/cuda_emulator/hopper.h has the same functions for the CPU.
#pragma once

#include "cuda/ampere.cuh"

namespace hexad {
namespace cuda {

// A tile of 16-bit elements as bulk copies with the 128-byte swizzle leave it: rows of 64 elements,
// 1024-byte aligned. Wider matrices are tiles side by side, `leading` bytes apart.
constexpr int kSwizzledColumns = 64;

// The 64-bit matrix descriptor of wgmma. Read along its columns (K-major, as A and B^T are): groups
// of 8 rows lie 1024 bytes apart. Read across (MN-major, B as it is): so do groups of 8 of K, and
// `leading` is the distance between tiles. Adding n / 16 moves the start by n bytes.
__host__ __device__ constexpr uint64_t swizzled_descriptor(uint32_t shared, uint32_t leading = 16) {
  return (uint64_t(1) << 62) | (uint64_t(1024 >> 4) << 32) |
         (uint64_t((leading & 0x3ffff) >> 4) << 16) | ((shared & 0x3ffff) >> 4);
}

}  // namespace cuda
}  // namespace hexad

#ifdef HEXAD_CUDA_EMULATOR
#include "hopper.h"
#else
#include <cuda.h>

#define HEXAD_DYNAMIC_SHARED_1024(type, name)                          \
  extern __shared__ __align__(1024) unsigned char hexad_shared_1024[]; \
  type* name = reinterpret_cast<type*>(hexad_shared_1024)

namespace hexad {
namespace cuda {

using TensorMap = CUtensorMap;

// Whether the kernels that need sm_90a can run on the current device.
inline bool on_hopper() {
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// A map of base[i3][i2][i1][i0] in boxes of `rows` x 64 elements of the last two dimensions.
// sizes[0] and box run along the contiguous dimension; strides (of dimensions 1 to 3) are bytes.
inline TensorMap tensor_map(const char* op, const void* base, bool is_bf16,
                            const int64_t (&sizes)[4], const int64_t (&strides)[3], int rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                                12000, cudaEnableDefault, &result);
    return status == cudaSuccess && result == cudaDriverEntryPointSuccess
               ? reinterpret_cast<Encode>(found)
               : nullptr;
  }();
  if (!encode) fail(HEXAD_CUDA, "%s: the driver has no cuTensorMapEncodeTiled", op);
  TensorMap map;
  cuuint64_t size[4], stride[3];
  for (int i = 0; i < 4; ++i) size[i] = cuuint64_t(sizes[i]);
  for (int i = 0; i < 3; ++i) stride[i] = cuuint64_t(strides[i]);
  const cuuint32_t box[4] = {kSwizzledColumns, cuuint32_t(rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  const CUresult status =
      encode(&map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
             const_cast<void*>(base), size, stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) fail(HEXAD_CUDA, "%s: tensor map: error %d", op, int(status));
  return map;
}

}  // namespace cuda
}  // namespace hexad

// Device code exists for sm_90a only; kernels for other chips are empty.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HEXAD_HOPPER

namespace hexad {
namespace cuda {

// Barriers in shared memory. A phase ends when `arrivals` have come and all expected bytes too.

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// After the inits, by the thread that did them; the block meets before others use the barriers.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Until the phase of this parity has ended; parity 1 passes on a fresh barrier.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Bulk copies. One thread starts them; a load's bytes count on its barrier.

__device__ __forceinline__ void tensor_load(void* to, const TensorMap& map, uint64_t* barrier,
                                            int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
__device__ __forceinline__ void tensor_store(const TensorMap& map, const void* from, int c0, int c1,
                                             int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
          "l"(&map),
      "r"(shared_address(from)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// `bytes`, a multiple of 16, between addresses that are too.
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until all but the last kPending groups of this thread's stores have read their shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// What this thread wrote to shared memory becomes visible to bulk copies and wgmma.
__device__ __forceinline__ void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Named barriers 1 to 15: `threads` meet, those that arrive don't wait.

__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// wgmma: what a warpgroup issues runs beside it. Before the first of a group, a fence; then the
// group is committed; until it has been waited for, its registers are not to be touched.

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of `x`, registers that wgmma holds, across the place where it
// stands: after a wait, and before the fence when they were just written.
template <int kCount>
__device__ __forceinline__ void keep(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void keep(uint32_t (&x)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
}

}  // namespace cuda
}  // namespace hexad

#include "cuda/wgmma.cuh"
#endif  // __CUDA_ARCH_FEAT_SM90_ALL
#endif  // HEXAD_CUDA_EMULATOR
