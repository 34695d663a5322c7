// Masked stores, and stores that go past the cache for outputs that would not stay in it.
#pragma once

#include <algorithm>

#include "cache.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

// The first n lanes (0 <= n <= 16), by one masked store where the machine has it.
HEXAD_INLINE void store_part(float* p, vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  const vi live = less_int(iota(), set1i(int32_t(n)));
  _mm256_maskstore_ps(p, (__m256i)live.lo, (__m256)v.lo);
  _mm256_maskstore_ps(p + 8, (__m256i)live.hi, (__m256)v.hi);
#else
  store_first(p, v, n);
#endif
}
HEXAD_INLINE void store_part(bf16* p, vf v, int64_t n) {
  store_first(p, v, n);
}

// Writes the lanes where `keep` is set one after the other, and anything into the rest of p[0..16);
// how many they were.
HEXAD_INLINE int store_kept(float* p, vf v, vi keep) {
#if defined(__AVX512F__)
  const __mmask16 mask = _mm512_test_epi32_mask((__m512i)keep, (__m512i)keep);
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(mask, (__m512)v));
  return __builtin_popcount(mask);
#else
  float lane[kLanes];
  int32_t kept[kLanes];
  store(lane, v), store(kept, keep);
  int n = 0;
  for (int i = 0; i < kLanes; ++i) {
    p[n] = lane[i];
    n -= kept[i];
  }
  return n;
#endif
}
HEXAD_INLINE bool any(vi m) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m);
#elif defined(__AVX2__)
  const __m256i either = (__m256i)(m.lo | m.hi);
  return !_mm256_testz_si256(either, either);
#else
  int32_t lane[kLanes], all = 0;
  store(lane, m);
  for (int32_t l : lane) all |= l;
  return all;
#endif
}

// Stores that go past the cache, for outputs that would not stay in it. p must be aligned to
// kStreamAlign; each thread calls drain() when it is done.
constexpr uintptr_t kStreamAlign = 64;
HEXAD_INLINE bool streams(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kStreamAlign == 0;
}
HEXAD_INLINE void stream(float* p, vf v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v.lo);
  _mm256_stream_ps(p + 8, (__m256)v.hi);
#else
  store(p, v);
#endif
}
HEXAD_INLINE void stream(bf16* p, vf v) {
#if defined(__AVX2__)
  bf16 rounded[kLanes];
  store(rounded, v);
  _mm256_stream_si256((__m256i*)p, _mm256_loadu_si256((const __m256i*)rounded));
#else
  store(p, v);
#endif
}
HEXAD_INLINE void drain() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Past the cache or into it.
template <class T>
HEXAD_INLINE void put(T* p, vf v, bool past) {
  past ? stream(p, v) : store(p, v);
}

// Asks for what such a kernel reads next: the processor runs ahead of few streams, and of none into
// the next page.
constexpr int64_t kAsked = 4096;  // bytes ahead
HEXAD_INLINE void ask(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + kAsked);
}

template <class T>
void copy(T* to, const T* from, int64_t n, bool past) {
  int64_t i = 0;
  if (past && reinterpret_cast<uintptr_t>(to) % sizeof(T) == 0) {
    while (i < n && !streams(to + i)) to[i] = from[i], ++i;
    constexpr int64_t step = 64 / sizeof(T);
    for (; i + step <= n; i += step) {
      ask(from + i);
      stream(reinterpret_cast<float*>(to + i), load<vf>(from + i));
    }
  }
  std::copy(from + i, from + n, to + i);
}

}  // namespace
}  // namespace hexad
