// Puts rows of a tensor where tile_product.h wants them: T is the tensor's element, U the unit.
#pragma once

#include "cpu/tile_product.h"

namespace hexad {
namespace {

HEXAD_INLINE int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

template <class T>
HEXAD_INLINE vf load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}

// Up to 16 units of a row of which n elements are there; the rest is zero.
template <class T>
HEXAD_INLINE vf row_units(Floats, const T* p, int64_t n) {
  return load_some(p, n);
}

// Sixteen elements of rows a and b (b null: zeros) as units.
template <class T>
HEXAD_INLINE vf across_units(Floats, const T* a, const T*, int64_t n) {
  return load_some(a, n);
}

#if HEXAD_PAIRS
HEXAD_INLINE vf row_units(Pairs, const bf16* p, int64_t n) {
  const __mmask32 live = n >= 32 ? ~__mmask32(0) : __mmask32((1u << n) - 1);
  return (vf)_mm512_maskz_loadu_epi16(live, p);
}
HEXAD_INLINE vf across_units(Pairs, const bf16* a, const bf16* b, int64_t n) {
  const __mmask16 live = n >= kLanes ? __mmask16(~0) : __mmask16((1u << n) - 1);
  const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, a));
  if (!b) return (vf)even;
  const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, b));
  return (vf)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}
#endif

// b[k][row]: unit k of each of `room` rows (a multiple of 32), n of which are there, others zero.
template <class U, class T>
Panels pack_turned(float* to, const T* p, int64_t row_step, int64_t n, int64_t room,
                   int64_t elements) {
  const int64_t units = (elements + U::kPer - 1) / U::kPer;
  const Panels out{to, kPanel, units * kPanel};
  for (int64_t j = 0; j < room; j += kLanes)
    for (int64_t k = 0; k < units; k += kLanes) {
      const int64_t left = elements - k * U::kPer;
      vf square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        square[i] = j + i < n ? row_units(U{}, p + (j + i) * row_step + k * U::kPer, left) : zero();
      transpose(square);
      float* column = to + j / kPanel * out.panel + k * kPanel + j % kPanel;
      const int64_t there = std::min<int64_t>(kLanes, units - k);
      for (int64_t i = 0; i < there; ++i) store(column + i * kPanel, square[i]);
    }
  return out;
}

// b[k][element]: unit k holds the elements of row k, or of rows 2k and 2k + 1; up to `room` rows.
template <class U, class T>
Panels pack_rows(float* to, const T* p, int64_t row_step, int64_t n, int64_t room,
                 int64_t elements) {
  const int64_t units = room / U::kPer;
  const Panels out{to, kPanel, units * kPanel};
  for (int64_t d = 0; d < elements; d += kLanes) {
    float* column = to + d / kPanel * out.panel + d % kPanel;
    for (int64_t k = 0; k < units; ++k, column += kPanel) {
      const int64_t i = k * U::kPer;
      const T* row = p + i * row_step + d;
      const T* next = U::kPer == 2 && i + 1 < n ? row + row_step : nullptr;
      store(column, i < n ? across_units(U{}, row, next, elements - d) : zero());
    }
  }
  return out;
}

// a(row, k), rows as they stand where they can be read in place.
template <class U, class T>
Factor pack_along(float* to, const T* p, int64_t row_step, int64_t n, int64_t elements) {
  constexpr bool same = sizeof(T) * U::kPer == sizeof(float);
  if (same && elements % U::kPer == 0)
    return {reinterpret_cast<const char*>(p), row_step * int64_t(sizeof(T)), 4};
  const int64_t units = round_up((elements + U::kPer - 1) / U::kPer, kLanes);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < units; k += kLanes)
      store(to + i * units + k,
            row_units(U{}, p + i * row_step + k * U::kPer, elements - k * U::kPer));
  return {reinterpret_cast<const char*>(to), units * 4, 4};
}

// No NaN and no infinity among n rows.
template <class T>
bool all_finite(const T* p, int64_t row_step, int64_t n, int64_t elements) {
  vf bad[4] = {zero(), zero(), zero(), zero()};
  for (int64_t d = 0; d < elements; d += kLanes)
    for (int64_t i = 0; i < n; i += 4)
#pragma GCC unroll 4
      for (int64_t m = 0; m < 4; ++m)
        bad[m] =
            fma(load_some(p + std::min(i + m, n - 1) * row_step + d, elements - d), zero(), bad[m]);
  return sum((bad[0] + bad[1]) + (bad[2] + bad[3])) == 0;
}

}  // namespace
}  // namespace hexad
