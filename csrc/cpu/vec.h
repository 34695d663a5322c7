// The vector of every CPU kernel: 16 floats, whatever the machine. This is the only file with
// instruction-set conditionals. On AVX-512 it is one register; elsewhere a tree of halves, so that
// lane-wise results and the order of horizontal sums are the same bits on every machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define HEXAD_INLINE inline __attribute__((always_inline))
// What several callers would each have a copy of, at a cost in compiling alone.
#define HEXAD_APART __attribute__((noinline))

namespace hexad {
namespace {

template <class T>
struct Pair {
  T lo, hi;
};

typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int32_t i32x16 __attribute__((vector_size(64)));

#if defined(__AVX512F__)
using vf = f32x16;
using vi = i32x16;
#elif defined(__AVX2__)
using vf = Pair<f32x8>;
using vi = Pair<i32x8>;
#else
using vf = Pair<Pair<f32x4>>;
using vi = Pair<Pair<i32x4>>;
#endif
constexpr int kLanes = 16;

// Lane-wise operators of the halves; GNU vectors bring their own.
#define HEXAD_BINARY(op)                                   \
  template <class T>                                       \
  HEXAD_INLINE Pair<T> operator op(Pair<T> a, Pair<T> b) { \
    return {a.lo op b.lo, a.hi op b.hi};                   \
  }
HEXAD_BINARY(+)
HEXAD_BINARY(-)
HEXAD_BINARY(*)
HEXAD_BINARY(/)
HEXAD_BINARY(&)
HEXAD_BINARY(|)
HEXAD_BINARY(^)
#undef HEXAD_BINARY

template <class T>
HEXAD_INLINE Pair<T> operator-(Pair<T> a) {
  return {-a.lo, -a.hi};
}
template <class T>
HEXAD_INLINE Pair<T> operator<<(Pair<T> a, int n) {
  return {a.lo << n, a.hi << n};
}
template <class T>
HEXAD_INLINE Pair<T> operator>>(Pair<T> a, int n) {
  return {a.lo >> n, a.hi >> n};
}

// The integer vector (also the type of masks: 0 or -1 a lane) with a float vector's shape.
template <class V>
struct IntOf;
template <>
struct IntOf<f32x4> {
  using type = i32x4;
};
template <>
struct IntOf<f32x8> {
  using type = i32x8;
};
template <>
struct IntOf<f32x16> {
  using type = i32x16;
};
template <>
struct IntOf<i32x4> {
  using type = i32x4;
};
template <>
struct IntOf<i32x8> {
  using type = i32x8;
};
template <>
struct IntOf<i32x16> {
  using type = i32x16;
};
template <class T>
struct IntOf<Pair<T>> {
  using type = Pair<typename IntOf<T>::type>;
};

// Half by half: a copy of the whole pair goes through memory in pieces too small to be forwarded.
template <class V>
struct Memory {
  static HEXAD_INLINE V load(const void* p) {
    V v;
    memcpy(&v, p, sizeof(V));
    return v;
  }
  static HEXAD_INLINE void store(void* p, V v) { memcpy(p, &v, sizeof(V)); }
};
template <class T>
struct Memory<Pair<T>> {
  static HEXAD_INLINE Pair<T> load(const void* p) {
    return {Memory<T>::load(p), Memory<T>::load(static_cast<const char*>(p) + sizeof(T))};
  }
  static HEXAD_INLINE void store(void* p, Pair<T> v) {
    Memory<T>::store(p, v.lo);
    Memory<T>::store(static_cast<char*>(p) + sizeof(T), v.hi);
  }
};

template <class V>
HEXAD_INLINE V load(const void* p) {
  return Memory<V>::load(p);
}
HEXAD_INLINE vf load(const float* p) {
  return load<vf>(p);
}
HEXAD_INLINE vi load(const int32_t* p) {
  return load<vi>(p);
}
HEXAD_INLINE void store(float* p, vf v) {
  Memory<vf>::store(p, v);
}
HEXAD_INLINE void store(int32_t* p, vi v) {
  Memory<vi>::store(p, v);
}

HEXAD_INLINE void splat(f32x4& v, float x) {
  v = f32x4{x, x, x, x};
}
HEXAD_INLINE void splat(f32x8& v, float x) {
  v = f32x8{x, x, x, x, x, x, x, x};
}
HEXAD_INLINE void splat(f32x16& v, float x) {
  v = f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
HEXAD_INLINE void splat(i32x4& v, int32_t x) {
  v = i32x4{x, x, x, x};
}
HEXAD_INLINE void splat(i32x8& v, int32_t x) {
  v = i32x8{x, x, x, x, x, x, x, x};
}
HEXAD_INLINE void splat(i32x16& v, int32_t x) {
  v = i32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
template <class T, class S>
HEXAD_INLINE void splat(Pair<T>& v, S x) {
  splat(v.lo, x);
  splat(v.hi, x);
}
HEXAD_INLINE vf set1(float x) {
  vf v;
  splat(v, x);
  return v;
}
HEXAD_INLINE vi set1i(int32_t x) {
  vi v;
  splat(v, x);
  return v;
}
HEXAD_INLINE vf zero() {
  return set1(0.f);
}

// 0, 1, ..., 15
HEXAD_INLINE vi iota() {
  static const int32_t lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(lanes);
}

// The first n lanes (0 <= n <= 16); the others read as `fill`, and are never touched in memory.
HEXAD_INLINE vf load_first(const float* p, int64_t n, float fill = 0.f) {
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = fill;
  memcpy(buffer, p, n * sizeof(float));
  return load(buffer);
}
HEXAD_INLINE void store_first(float* p, vf v, int64_t n) {
  float buffer[kLanes];
  store(buffer, v);
  memcpy(p, buffer, n * sizeof(float));
}

// a * b + c with one rounding.
HEXAD_INLINE f32x4 fma(f32x4 a, f32x4 b, f32x4 c) {
#if defined(__FMA__)
  return (f32x4)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#elif defined(__aarch64__)
  return (f32x4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  f32x4 r;
  for (int i = 0; i < 4; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#endif
}
#if defined(__AVX2__)
HEXAD_INLINE f32x8 fma(f32x8 a, f32x8 b, f32x8 c) {
  return (f32x8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
HEXAD_INLINE f32x8 sqrt(f32x8 a) {
  return (f32x8)_mm256_sqrt_ps((__m256)a);
}
#endif
#if defined(__AVX512F__)
HEXAD_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
HEXAD_INLINE f32x16 sqrt(f32x16 a) {
  return (f32x16)_mm512_sqrt_ps((__m512)a);
}
#endif
HEXAD_INLINE f32x4 sqrt(f32x4 a) {
  for (int i = 0; i < 4; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
template <class T>
HEXAD_INLINE Pair<T> fma(Pair<T> a, Pair<T> b, Pair<T> c) {
  return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)};
}
template <class T>
HEXAD_INLINE Pair<T> sqrt(Pair<T> a) {
  return {sqrt(a.lo), sqrt(a.hi)};
}

// Comparisons give masks. select(m, a, b) takes a where the mask is set.
template <class V>
HEXAD_INLINE typename IntOf<V>::type less(V a, V b) {
  return a < b;
}
template <class T>
HEXAD_INLINE typename IntOf<Pair<T>>::type less(Pair<T> a, Pair<T> b) {
  return {less(a.lo, b.lo), less(a.hi, b.hi)};
}
template <class V>
HEXAD_INLINE typename IntOf<V>::type equal(V a, V b) {
  return a == b;
}
template <class T>
HEXAD_INLINE typename IntOf<Pair<T>>::type equal(Pair<T> a, Pair<T> b) {
  return {equal(a.lo, b.lo), equal(a.hi, b.hi)};
}
template <class V>
HEXAD_INLINE typename IntOf<V>::type at_least(V a, V b) {
  return a >= b;
}
template <class T>
HEXAD_INLINE typename IntOf<Pair<T>>::type at_least(Pair<T> a, Pair<T> b) {
  return {at_least(a.lo, b.lo), at_least(a.hi, b.hi)};
}
template <class V>
HEXAD_INLINE V less_int(V a, V b) {
  return a < b;
}
template <class T>
HEXAD_INLINE Pair<T> less_int(Pair<T> a, Pair<T> b) {
  return {less_int(a.lo, b.lo), less_int(a.hi, b.hi)};
}
template <class V>
HEXAD_INLINE V select(typename IntOf<V>::type m, V a, V b) {
  return m ? a : b;
}
template <class T>
HEXAD_INLINE Pair<T> select(typename IntOf<Pair<T>>::type m, Pair<T> a, Pair<T> b) {
  return {select(m.lo, a.lo, b.lo), select(m.hi, a.hi, b.hi)};
}
// A NaN in b wins (a is the bound, b the datum), so clamping keeps NaN.
template <class V>
HEXAD_INLINE V max(V a, V b) {
  return select(less(b, a), a, b);
}
template <class V>
HEXAD_INLINE V min(V a, V b) {
  return select(less(a, b), a, b);
}
#if defined(__AVX2__)
HEXAD_INLINE f32x8 max(f32x8 a, f32x8 b) {
  return (f32x8)_mm256_max_ps((__m256)a, (__m256)b);
}
HEXAD_INLINE f32x8 min(f32x8 a, f32x8 b) {
  return (f32x8)_mm256_min_ps((__m256)a, (__m256)b);
}
#endif
#if defined(__AVX512F__)
// Masked by all lanes: GCC 12 warns of what the plain forms leave undefined.
HEXAD_INLINE f32x16 max(f32x16 a, f32x16 b) {
  return (f32x16)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}
HEXAD_INLINE f32x16 min(f32x16 a, f32x16 b) {
  return (f32x16)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
}
#endif
template <class T>
HEXAD_INLINE Pair<T> max(Pair<T> a, Pair<T> b) {
  return {max(a.lo, b.lo), max(a.hi, b.hi)};
}
template <class T>
HEXAD_INLINE Pair<T> min(Pair<T> a, Pair<T> b) {
  return {min(a.lo, b.lo), min(a.hi, b.hi)};
}

HEXAD_INLINE vi bits(vf v) {
  return load<vi>(&v);
}
HEXAD_INLINE vf from_bits(vi v) {
  return load<vf>(&v);
}
HEXAD_INLINE vf abs(vf v) {
  return from_bits(bits(v) & set1i(0x7fffffff));
}

// Round to nearest even for |v| < 2^22, as float and as integer.
HEXAD_INLINE vf round(vf v) {
  const vf magic = set1(12582912.f);
  return (v + magic) - magic;
}
HEXAD_INLINE vi round_int(vf v) {
  const vf magic = set1(12582912.f);
  return bits(v + magic) - bits(magic);
}
// Exact for 0 <= v < 2^22.
HEXAD_INLINE vf to_float(vi v) {
  const vf magic = set1(12582912.f);
  return from_bits(v + bits(magic)) - magic;
}

// v 2^n, rounded once, for n an integer from -252 to 254, k the same.
HEXAD_INLINE vf times_power(vf v, [[maybe_unused]] vf n, [[maybe_unused]] vi k) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)v, (__m512)n);
#else
  const vi half = k >> 1;
  return v * from_bits((half + set1i(127)) << 23) * from_bits((k - half + set1i(127)) << 23);
#endif
}

// Horizontal sum and maximum: always the tree 16 -> 8 -> 4 -> 2 -> 1 of halves.
HEXAD_INLINE f32x8 halves_sum(f32x16 v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}
HEXAD_INLINE f32x4 halves_sum(f32x8 v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
template <class T>
HEXAD_INLINE T halves_sum(Pair<T> v) {
  return v.lo + v.hi;
}
HEXAD_INLINE float sum4(f32x4 v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}
HEXAD_INLINE float sum(vf v) {
  return sum4(halves_sum(halves_sum(v)));
}
HEXAD_INLINE float max_lane(vf v) {
  float lane[kLanes];
  store(lane, v);
  for (int n = kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) lane[i] = lane[i + n] > lane[i] ? lane[i + n] : lane[i];
  return lane[0];
}

// load_first with zeros, by one masked load where the machine has it: for inner loops.
HEXAD_INLINE vf load_part(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#elif defined(__AVX2__)
  const vi live = less_int(iota(), set1i(int32_t(n)));
  return {(f32x8)_mm256_maskload_ps(p, (__m256i)live.lo),
          (f32x8)_mm256_maskload_ps(p + 8, (__m256i)live.hi)};
#else
  return load_first(p, n);
#endif
}
// sum() of four vectors at once, with the same bits.
HEXAD_INLINE f32x4 sum_each(vf a, vf b, vf c, vf d) {
  const f32x4 a4 = halves_sum(halves_sum(a)), b4 = halves_sum(halves_sum(b));
  const f32x4 c4 = halves_sum(halves_sum(c)), d4 = halves_sum(halves_sum(d));
  const f32x4 ab =
      __builtin_shufflevector(a4, b4, 0, 1, 4, 5) + __builtin_shufflevector(a4, b4, 2, 3, 6, 7);
  const f32x4 cd =
      __builtin_shufflevector(c4, d4, 0, 1, 4, 5) + __builtin_shufflevector(c4, d4, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}
// The largest lane; a NaN may get lost.
template <class V>
HEXAD_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class T>
HEXAD_INLINE Pair<T> larger(Pair<T> a, Pair<T> b) {
  return {larger(a.lo, b.lo), larger(a.hi, b.hi)};
}
HEXAD_INLINE f32x8 halves_max(f32x16 v) {
  return larger(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
HEXAD_INLINE f32x4 halves_max(f32x8 v) {
  return larger(__builtin_shufflevector(v, v, 0, 1, 2, 3),
                __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
template <class T>
HEXAD_INLINE T halves_max(Pair<T> v) {
  return larger(v.lo, v.hi);
}
HEXAD_INLINE float max_across(vf v) {
  const f32x4 q = halves_max(halves_max(v));
  const float a = q[0] > q[2] ? q[0] : q[2], b = q[1] > q[3] ? q[1] : q[3];
  return a > b ? a : b;
}

// One machine register, for kernels that fill the register file with accumulators (an array of
// halves would go through memory), and how many accumulators leave room for the operands.
#if defined(__AVX512F__)
using reg = f32x16;
constexpr int kAccumulators = 24;
#elif defined(__AVX2__)
using reg = f32x8;
constexpr int kAccumulators = 12;
#else
using reg = f32x4;
constexpr int kAccumulators = 24;
#endif
constexpr int kRegLanes = sizeof(reg) / sizeof(float);
HEXAD_INLINE reg load_reg(const float* p) {
  return load<reg>(p);
}
HEXAD_INLINE void store_reg(float* p, reg v) {
  memcpy(p, &v, sizeof v);
}
HEXAD_INLINE reg set1_reg(float x) {
  reg v;
  splat(v, x);
  return v;
}

}  // namespace
}  // namespace hexad

#include "cpu/bf16.h"
#include "cpu/transpose.h"
