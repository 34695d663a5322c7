// Runs CUDA C++ kernels on the CPU: what <cuda_runtime.h> and <cuda_bf16.h> give to a kernel file,
// for g++. A CUDA thread is a fiber; blocks run one after another; the order of threads is drawn
// from a seed at every point where a thread waits, so a missing barrier shows as a wrong result.
//
// Found and reported: deadlocks (who waits where), lanes that are not in their own mask or read
// from a lane outside it, exited lanes that others wait for, writes past a shared array. Shared
// memory starts as NaN. Not modelled: time, the memory model, alignment.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {

enum class Collective { sync, ballot, shuffle, shuffle_up, shuffle_down, shuffle_xor };

// Runs `thread` for every thread of the grid. Null, or what went wrong in the first block that
// failed.
const char* run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// The next launch draws its orders from this seed, the ones after it from its successors.
void seed(uint64_t value);

void* shared_array(const void* key, size_t bytes);
void* dynamic_shared();
void block_barrier(const char* file, int line);
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int operand, int width,
                         const char* file, int line);

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int operand, int width, const char* file,
          int line) {
  static_assert(sizeof(T) <= 8);
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof value);
  raw = warp_collective(kind, mask, raw, operand, width, file, line);
  memcpy(&value, &raw, sizeof value);
  return value;
}

}  // namespace cuda_emulator

#define HEXAD_SHARED(type, name, dims)              \
  static const char name##_key = 0;                 \
  using name##_array = type dims;                   \
  name##_array& name = *static_cast<name##_array*>( \
      ::cuda_emulator::shared_array(&name##_key, sizeof(name##_array)))
#define HEXAD_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(::cuda_emulator::dynamic_shared())

#define HEXAD_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(HEXAD_WHERE) {
  cuda_emulator::block_barrier(file, line);
}
inline void __syncwarp(unsigned mask = ~0u, HEXAD_WHERE) {
  cuda_emulator::warp_collective(cuda_emulator::Collective::sync, mask, 0, 0, 32, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HEXAD_WHERE) {
  return unsigned(cuda_emulator::warp_collective(cuda_emulator::Collective::ballot, mask,
                                                 predicate != 0, 0, 32, file, line));
}
inline int __any_sync(unsigned mask, int predicate, HEXAD_WHERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HEXAD_WHERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}

#define HEXAD_SHUFFLE(name, kind)                                                               \
  template <class T>                                                                            \
  T name(unsigned mask, T value, int operand, int width = 32, HEXAD_WHERE) {                    \
    return cuda_emulator::shuffle(cuda_emulator::Collective::kind, mask, value, operand, width, \
                                  file, line);                                                  \
  }
HEXAD_SHUFFLE(__shfl_sync, shuffle)
HEXAD_SHUFFLE(__shfl_up_sync, shuffle_up)
HEXAD_SHUFFLE(__shfl_down_sync, shuffle_down)
HEXAD_SHUFFLE(__shfl_xor_sync, shuffle_xor)
#undef HEXAD_SHUFFLE
#undef HEXAD_WHERE

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t raw = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &raw, 4);
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t raw;
  memcpy(&raw, &value, 4);
  if (value != value) return {0x7fff};
  return {uint16_t((raw + 0x7fff + (raw >> 16 & 1)) >> 16)};
}

// A half is kept as its bits; conversions round to nearest even.
struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) {
  _Float16 value;
  memcpy(&value, &x.bits, 2);
  return float(value);
}
inline __half __float2half_rn(float value) {
  const _Float16 near = _Float16(value);
  __half x;
  memcpy(&x.bits, &near, 2);
  return x;
}

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline unsigned __float_as_uint(float value) {
  unsigned raw;
  memcpy(&raw, &value, 4);
  return raw;
}
inline float __uint_as_float(unsigned raw) {
  float value;
  memcpy(&value, &raw, 4);
  return value;
}
// Byte i of the result is the byte of y:x that nibble i of the selector names.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = uint64_t(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}

// Four products of signed bytes, summed.
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += int8_t(a >> i) * int8_t(b >> i);
  return sum;
}

// Threads take turns at points where they wait only, so nothing can come between.
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
