// Registers read from several rows at once, and from narrower types: what decode adds to vec.h.
#pragma once

#include "cpu/vec.h"

namespace hexad {
namespace {

// In-lane squares of four by four: column c of each lane's rows a, b, c, d.
template <class V, int... L>
HEXAD_INLINE void turn_lanes(V* v, std::integer_sequence<int, L...>) {
  constexpr int n = sizeof...(L);
  const V a = __builtin_shufflevector(v[0], v[1], (L / 4 * 4 + L % 4 / 2 + L % 2 * n)...);
  const V b = __builtin_shufflevector(v[0], v[1], (L / 4 * 4 + 2 + L % 4 / 2 + L % 2 * n)...);
  const V c = __builtin_shufflevector(v[2], v[3], (L / 4 * 4 + L % 4 / 2 + L % 2 * n)...);
  const V d = __builtin_shufflevector(v[2], v[3], (L / 4 * 4 + 2 + L % 4 / 2 + L % 2 * n)...);
  v[0] = __builtin_shufflevector(a, c, (L / 4 * 4 + L % 2 + L % 4 / 2 * n)...);
  v[1] = __builtin_shufflevector(a, c, (L / 4 * 4 + 2 + L % 2 + L % 4 / 2 * n)...);
  v[2] = __builtin_shufflevector(b, d, (L / 4 * 4 + L % 2 + L % 4 / 2 * n)...);
  v[3] = __builtin_shufflevector(b, d, (L / 4 * 4 + 2 + L % 2 + L % 4 / 2 * n)...);
}

// Rows of kRegLanes floats (or of as many bytes of anything else) read into a transposed square.
// Two halves of rows meet in a register as they are read, which saves a quarter of the shuffles.
HEXAD_INLINE void load_turned(const void* const* rows, int64_t bytes, reg* square) {
  const auto at = [&](int row, int64_t more) {
    return static_cast<const char*>(rows[row]) + bytes + more;
  };
#if defined(__AVX512F__)
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    reg t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      t[i] = (reg)_mm512_insertf64x4(
          _mm512_castpd256_pd512(_mm256_loadu_pd((const double*)at(i, 32 * half))),
          _mm256_loadu_pd((const double*)at(8 + i, 32 * half)), 1);
    turn_lanes(t, std::make_integer_sequence<int, 16>{});
    turn_lanes(t + 4, std::make_integer_sequence<int, 16>{});
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      square[8 * half + c] = __builtin_shufflevector(t[c], t[4 + c], 0, 1, 2, 3, 16, 17, 18, 19, 8,
                                                     9, 10, 11, 24, 25, 26, 27);
      square[8 * half + 4 + c] = __builtin_shufflevector(t[c], t[4 + c], 4, 5, 6, 7, 20, 21, 22, 23,
                                                         12, 13, 14, 15, 28, 29, 30, 31);
    }
  }
#elif defined(__AVX2__)
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      square[4 * half + i] = (reg)_mm256_insertf128_ps(
          _mm256_castps128_ps256(_mm_loadu_ps((const float*)at(i, 16 * half))),
          _mm_loadu_ps((const float*)at(4 + i, 16 * half)), 1);
    turn_lanes(square + 4 * half, std::make_integer_sequence<int, 8>{});
  }
#else
  for (int i = 0; i < kRegLanes; ++i) square[i] = load<reg>(at(i, 0));
  transpose(square);
#endif
}

// kRegLanes elements of a narrower type.
HEXAD_INLINE reg load_reg(const bf16* p) {
#if defined(__AVX512F__)
  return load(p);
#elif defined(__AVX2__)
  return (reg)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  return reg{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
#endif
}
HEXAD_INLINE reg load_reg(const int8_t* p) {
#if defined(__AVX512F__)
  return (reg)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (reg)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  return reg{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
#endif
}

}  // namespace
}  // namespace hexad
