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
#include <string>

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

// Ends the launch from inside a thread; `why` becomes the complaint.
void stop(const std::string& why);

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

struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  uint32_t raw = sign | (uint32_t(x.bits & 0x7fff) + (112 << 10)) << 13;
  if ((x.bits & 0x7c00) == 0x7c00) raw |= 0x7f800000;
  float value;
  memcpy(&value, &raw, 4);
  if (!(x.bits & 0x7c00)) value = std::ldexp(float(x.bits & 0x3ff), -24) * (sign ? -1.f : 1.f);
  return value;
}
inline __half __float2half_rn(float value) {
  uint32_t raw;
  memcpy(&raw, &value, 4);
  const uint16_t sign = uint16_t(raw >> 16 & 0x8000);
  if (value != value) return {0x7fff};
  const float size = std::fabs(value);
  if (size >= 65520.f) return {uint16_t(sign | 0x7c00)};
  // Below 2^-14 the spacing is fixed; above, the exponent moves over and the mantissa is rounded.
  if (size < 0x1p-14f) return {uint16_t(sign | unsigned(std::nearbyint(size * 0x1p24f)))};
  raw &= 0x7fffffff;
  return {uint16_t(sign | ((raw + 0xfff + (raw >> 13 & 1)) >> 13) - (112 << 10))};
}
