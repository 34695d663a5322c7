// Products of small tiles, c[m][n] += sum over k of a(m, k) b[k][n], for either unit of reduction:
// a float, or a pair of bfloat16 (level avx512bf16). A unit takes 4 bytes. The sum over k goes in
// chunks of kChunk from k = 0 up, each a chain of its own, and is added to c at the end: closer
// than one long chain, and an element's bits depend on its own a and b only.
#pragma once

#include <algorithm>

#include "cpu/pairs.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

struct Floats {
  static constexpr int kPer = 1;  // elements in a unit
  static constexpr int64_t kChunk = 32;
  static constexpr int kUnroll = 1;  // unrolling pays for pairs only (measured)
  using Wide = reg;
  static HEXAD_INLINE Wide load(const float* p) { return load_reg(p); }
  static HEXAD_INLINE Wide spread(const char* p) {
    float x;
    memcpy(&x, p, sizeof x);
    return set1_reg(x);
  }
  static HEXAD_INLINE reg add(Wide a, Wide b, reg c) { return fma(a, b, c); }
};

#if HEXAD_PAIRS
struct Pairs {
  static constexpr int kPer = 2;
  static constexpr int64_t kChunk = 64;
  static constexpr int kUnroll = 4;
  using Wide = pairs;
  static HEXAD_INLINE Wide load(const float* p) { return load_pairs(p); }
  static HEXAD_INLINE Wide spread(const char* p) { return spread_pair(p); }
  static HEXAD_INLINE reg add(Wide a, Wide b, reg c) { return dot(a, b, c); }
};
#endif

// a(m, k) stands at a + m * a_row + k * a_step bytes; the steps of b and c count floats.
struct Factor {
  const char* at;
  int64_t row, step;
};

// Rows of b in panels of 32 columns: column n of row k stands at (n / 32) * panel + k * step + n
// % 32.
constexpr int64_t kPanel = 32;
struct Panels {
  const float* at;
  int64_t step, panel;
  HEXAD_INLINE const float* column(int64_t n) const { return at + n / kPanel * panel + n % kPanel; }
  HEXAD_INLINE Panels from(int64_t k) const { return {at + k * step, step, panel}; }
};

#if defined(__AVX512F__)
constexpr int kProductRows = 8, kProductWide = 2;
#elif defined(__AVX2__)
constexpr int kProductRows = 6, kProductWide = 2;
#else
constexpr int kProductRows = 4, kProductWide = 4;
#endif

template <class U, int MR, int NV>
HEXAD_INLINE void product_block(float* c, int64_t c_step, bool fresh, const Factor& a,
                                const float* b, int64_t b_step, int64_t units) {
  reg total[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n)
      total[r][n] = fresh ? set1_reg(0.f) : load_reg(c + r * c_step + n * kRegLanes);
  const char* x = a.at;
  const int64_t row = a.row, step = a.step;
  const int64_t chunk = fresh ? U::kChunk / 2 : U::kChunk;
  for (int64_t done = 0; done < units; done += chunk) {
    reg sum[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) sum[r][n] = set1_reg(0.f);
    const int64_t upto = std::min(units - done, chunk);
    const auto once = [&](const char* x, const float* b) {
      typename U::Wide wide[NV];
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) wide[n] = U::load(b + n * kRegLanes);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const typename U::Wide one = U::spread(x + r * row);
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) sum[r][n] = U::add(one, wide[n], sum[r][n]);
      }
    };
    int64_t k = 0;
    if constexpr (U::kUnroll == 4)
      for (; k + 4 <= upto; k += 4, x += 4 * step, b += 4 * b_step) {
        once(x, b), once(x + step, b + b_step);
        once(x + 2 * step, b + 2 * b_step), once(x + 3 * step, b + 3 * b_step);
      }
    for (; k < upto; ++k, x += step, b += b_step) once(x, b);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) total[r][n] = total[r][n] + sum[r][n];
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) store_reg(c + r * c_step + n * kRegLanes, total[r][n]);
}

template <class U, int MR, int NV>
void product_rows(float* c, int64_t c_step, bool fresh, Factor a, const float* b, int64_t b_step,
                  int64_t rows, int64_t units) {
  for (; rows >= MR; rows -= MR, c += MR * c_step, a.at += MR * a.row)
    product_block<U, MR, NV>(c, c_step, fresh, a, b, b_step, units);
  if constexpr (MR > 1)
    if (rows)
      product_rows<U, (MR > 4 ? 4 : MR / 2), NV>(c, c_step, fresh, a, b, b_step, rows, units);
}

// `rows` rows of columns [begin, end), multiples of 16, of c over `units` of the reduction; fresh:
// c starts at 0.
template <class U>
void product(float* c, int64_t c_step, bool fresh, const Factor& a, const Panels& b, int64_t begin,
             int64_t end, int64_t rows, int64_t units) {
  constexpr int wide = kProductWide * kRegLanes;
  int64_t n = begin;
  for (; n + wide <= end; n += wide)
    product_rows<U, kProductRows, kProductWide>(c + n, c_step, fresh, a, b.column(n), b.step, rows,
                                                units);
  if constexpr (wide > kLanes)
    for (; n < end; n += kLanes)
      product_rows<U, kProductRows, kLanes / kRegLanes>(c + n, c_step, fresh, a, b.column(n),
                                                        b.step, rows, units);
}

}  // namespace
}  // namespace hexad
