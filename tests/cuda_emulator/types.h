// The types and small functions that <cuda_runtime.h>, <cuda_bf16.h> and <cuda_fp16.h> bring.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define HEXAD_VECTORS(T, name, align2, align4)        \
  struct alignas(align2) name##2 {                    \
    T x, y;                                           \
  };                                                  \
  struct name##3 {                                    \
    T x, y, z;                                        \
  };                                                  \
  struct alignas(align4) name##4 {                    \
    T x, y, z, w;                                     \
  };                                                  \
  inline name##2 make_##name##2(T x, T y) {           \
    return {x, y};                                    \
  }                                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { \
    return {x, y, z, w};                              \
  }
HEXAD_VECTORS(float, float, 8, 16)
HEXAD_VECTORS(int, int, 8, 16)
HEXAD_VECTORS(unsigned, uint, 8, 16)
HEXAD_VECTORS(short, short, 4, 8)
HEXAD_VECTORS(unsigned short, ushort, 4, 8)
HEXAD_VECTORS(signed char, char, 2, 4)
HEXAD_VECTORS(unsigned char, uchar, 2, 4)
#undef HEXAD_VECTORS

template <class To, class From>
inline To cuda_emulator_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) {
  return cuda_emulator_cast<float>(x);
}
inline float __int_as_float(int x) {
  return cuda_emulator_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return cuda_emulator_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return cuda_emulator_cast<int>(x);
}

struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  return __uint_as_float(uint32_t(x.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t raw = __float_as_uint(value);
  if (value != value) return {0x7fff};
  return {uint16_t((raw + 0x7fff + (raw >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline float __half2float(__half x) {
  return float(cuda_emulator_cast<_Float16>(x.bits));
}
inline __half __float2half_rn(float value) {
  if (value != value) return {0x7fff};
  return {cuda_emulator_cast<uint16_t>(_Float16(value))};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}

inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return __floats2bfloat162_rn(__bfloat162float(a.x) * __bfloat162float(b.x),
                               __bfloat162float(a.y) * __bfloat162float(b.y));
}
inline __half2 __hmul2(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) * __half2float(b.x),
                           __half2float(a.y) * __half2float(b.y));
}

// Fast functions of the device are right to a few ulps; here they are right.
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float rsqrtf(float x) {
  return 1.f / sqrtf(x);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(unsigned(x)) : 32;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned(uint64_t(a) * b >> 32);
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
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline void __stwb(T* p, T value) {
  *p = value;
}
#define HEXAD_MIN_MAX(T)   \
  inline T min(T a, T b) { \
    return b < a ? b : a;  \
  }                        \
  inline T max(T a, T b) { \
    return a < b ? b : a;  \
  }
HEXAD_MIN_MAX(int)
HEXAD_MIN_MAX(unsigned)
HEXAD_MIN_MAX(long long)
HEXAD_MIN_MAX(unsigned long long)
HEXAD_MIN_MAX(long)
HEXAD_MIN_MAX(unsigned long)
#undef HEXAD_MIN_MAX

// Integer atomics: nobody runs between the read and the write. There are none for floats, whose sum
// would depend on who comes first.
#define HEXAD_ATOMIC(name, expression)                                                 \
  template <class T>                                                                   \
  __attribute__((noinline, no_sanitize("thread"))) T name(T* p, decltype(T{}) value) { \
    static_assert(T(1) / T(2) == T(0), "an integer");                                  \
    const T old = *p;                                                                  \
    *p = (expression);                                                                 \
    return old;                                                                        \
  }
HEXAD_ATOMIC(atomicAdd, T(old + value))
HEXAD_ATOMIC(atomicSub, T(old - value))
HEXAD_ATOMIC(atomicMax, old < value ? value : old)
HEXAD_ATOMIC(atomicMin, value < old ? value : old)
HEXAD_ATOMIC(atomicAnd, T(old& value))
HEXAD_ATOMIC(atomicOr, T(old | value))
HEXAD_ATOMIC(atomicXor, T(old ^ value))
HEXAD_ATOMIC(atomicExch, value)
HEXAD_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
#undef HEXAD_ATOMIC
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicCAS(T* p, decltype(T{}) expected,
                                                             decltype(T{}) value) {
  const T old = *p;
  if (old == expected) *p = value;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
