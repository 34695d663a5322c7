// Float8 caches, 1: e4m3fn, 2: e5m2, from and to wider floats by their bits alone: exact on sm_80
// too, which has no such conversions.
#pragma once

#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

struct Float8 {
  uint8_t bits;
};

// As bits of a float16 an e5m2 has its value, an e4m3 2^-8 of it.
__device__ inline float float_of(Float8 x, int kind) {
  const unsigned size = x.bits & 0x7fu, sign = (x.bits & 0x80u) << 8;
  const uint16_t bits = uint16_t(sign | size << (kind == 1 ? 7 : 8));
  f16 half;
  memcpy(&half, &bits, sizeof half);
  if (kind == 1) return size == 0x7f ? NAN : __half2float(half) * 256.f;
  return __half2float(half);
}

// The nearest one, ties to even, to a number in its range.
__device__ inline Float8 to_float8(float x, int kind) {
  const int fraction = 4 - kind, bias = kind == 1 ? 7 : 15;
  const unsigned u = __float_as_uint(x), size = u & 0x7fffffffu;
  const unsigned half = (1u << (22 - fraction)) - 1 + (size >> (23 - fraction) & 1);
  const unsigned normal = ((size + half) >> (23 - fraction)) - (unsigned(127 - bias) << fraction);
  const float unit = fabsf(x) * float(1 << (bias - 1));  // of the least normal number
  const unsigned nearest = unit < 1.f ? unsigned(rintf(unit * float(1 << fraction))) : normal;
  return {uint8_t(nearest | (u >> 24 & 0x80u))};
}

// Pairs of T from pairs of float8: their bits as those of a T, times a power of two, whatever the
// number; infinities and NaN, which this gets wrong, are found four at a time.
template <class T>
struct Float8Pairs {
  static constexpr bool kHalf = std::is_same<T, f16>::value;
  using Pair = typename std::conditional<kHalf, __half2, __nv_bfloat162>::type;
  unsigned shift, factor, beyond;
  int kind;

  __device__ explicit Float8Pairs(int k) : kind(k) {
    const bool e4m3 = k == 1;
    shift = kHalf ? (e4m3 ? 1 : 0) : e4m3 ? 4 : 3;
    factor = kHalf ? (e4m3 ? 0x5c005c00u : 0x3c003c00u) : e4m3 ? 0x7b807b80u : 0x77807780u;
    beyond = e4m3 ? 0x01010101u : 0x04040404u;
  }

  // Of the high bytes of each half of a word.
  __device__ unsigned of_high(unsigned word) const {
    const unsigned bits = (word & 0x80008000u) | (word & 0x7f007f00u) >> shift;
    Pair value, times;
    memcpy(&value, &bits, sizeof value);
    memcpy(&times, &factor, sizeof times);
    value = __hmul2(value, times);
    unsigned found;
    memcpy(&found, &value, sizeof found);
    return found;
  }

  // Four neighbours.
  __device__ void of(unsigned four, unsigned& low, unsigned& high) const {
    if (((four & 0x7f7f7f7fu) + beyond) & 0x80808080u) {
      uint64_t wide = 0;
#pragma unroll 1
      for (int i = 0; i < 32; i += 8) {
        T one;
        put(&one, float_of(Float8{uint8_t(four >> i)}, kind));
        uint16_t bits;
        memcpy(&bits, &one, sizeof bits);
        wide = wide >> 16 | uint64_t(bits) << 48;
      }
      low = unsigned(wide), high = unsigned(wide >> 32);
      return;
    }
    low = of_high(__byte_perm(four, 0, 0x1404));
    high = of_high(__byte_perm(four, 0, 0x3424));
  }
};

}  // namespace
}  // namespace cuda
}  // namespace hexad
