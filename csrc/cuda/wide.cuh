// 16 bytes of neighbouring elements, as floats.
#pragma once

#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

template <class T>
constexpr int kWide = 16 / int(sizeof(T));

// Up to kWide elements, the rest zeros; in one access where they are all there and `aligned`.
template <class T>
__device__ inline void load_wide(const T* p, int64_t count, bool aligned, float (&x)[kWide<T>]) {
  if (aligned && count >= kWide<T>) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    T element[kWide<T>];
    memcpy(element, &raw, sizeof raw);
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) x[i] = to_float(element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) x[i] = i < count ? to_float(p[i]) : 0.f;
  }
}

template <class T>
__device__ inline void store_wide(T* p, int64_t count, bool aligned, const float (&x)[kWide<T>]) {
  if (aligned && count >= kWide<T>) {
    T element[kWide<T>];
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i) put(element + i, x[i]);
    uint4 raw;
    memcpy(&raw, element, sizeof raw);
    *reinterpret_cast<uint4*>(p) = raw;
  } else {
#pragma unroll
    for (int i = 0; i < kWide<T>; ++i)
      if (i < count) put(p + i, x[i]);
  }
}

// Whether `at`, and what lies strides of `size` bytes from it, are at multiples of 16 bytes.
template <int kStrides>
bool aligned_16(const void* at, const int64_t (&stride)[kStrides], int64_t size) {
  int64_t all = int64_t(reinterpret_cast<uintptr_t>(at));
  for (int64_t s : stride) all |= s * size;
  return all % 16 == 0;
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
