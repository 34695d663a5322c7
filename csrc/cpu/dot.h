// Sums over a contiguous dimension, a block of rows by columns at a time: the inner loop of linear,
// maskedconv and vq.
//
// Each sum is 16 partial sums, lane i taking elements i, i + 16, ..., then the tree of vec.h. So
// its bits depend on its own row and column only, while the shape of a block, which depends on the
// machine's registers and on how many rows there are, is free.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/vec.h"

namespace hexad {
namespace {

constexpr bool kWide = std::is_same<vf, f32x16>::value;  // 32 registers of 16 floats
constexpr int kRows = kWide ? 6 : 3;                     // the most rows of a block
constexpr int kColumns = 16;                             // columns that one call of dots() fills

struct Product {
  HEXAD_INLINE vf column(vf w) const { return w; }
  HEXAD_INLINE vf operator()(vf x, vf w, vf sum) const { return fma(x, w, sum); }
  HEXAD_INLINE void next() {}
};

struct SquaredDifference {
  HEXAD_INLINE vf column(vf w) const { return w; }
  HEXAD_INLINE vf operator()(vf x, vf w, vf sum) const {
    const vf d = x - w;
    return fma(d, d, sum);
  }
  HEXAD_INLINE void next() {}
};

// R rows by C columns into out[r * kColumns + c].
template <int R, int C, class X, class W, class Step>
void dot_block(const X* const* x, const W* const* w, int64_t n, Step step, float* out) {
  vf sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[r][c] = zero();
  const auto add = [&](auto&& read) __attribute__((always_inline)) {
    vf column[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) column[c] = step.column(read(w[c]));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf row = read(x[r]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[r][c] = step(row, column[c], sums[r][c]);
    }
    step.next();
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    add([&](auto* p) __attribute__((always_inline)) { return load(p + i); });
  if (i < n) add([&](auto* p) __attribute__((always_inline)) { return load_part(p + i, n - i); });
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; c += C % 4 ? 1 : 4) {
      float* to = out + r * kColumns + c;
      if constexpr (C % 4 == 0) {
        const f32x4 four = sum_each(sums[r][c], sums[r][c + 1], sums[r][c + 2], sums[r][c + 3]);
        memcpy(to, &four, sizeof four);
      } else {
        *to = sum(sums[r][c]);
      }
    }
}

template <int R, class X, class W, class Step>
void dot_rows(const X* x, int64_t x_stride, int rows, const W* w, int64_t w_stride, int columns,
              int64_t n, const Step& step, float* out) {
  constexpr int C = kWide ? (R <= 2 ? 8 : 4) : (R == 1 ? 4 : 2);
  // Rows and columns beyond the last read the last one again; their sums are not used.
  const X* row[R];
  for (int r = 0; r < R; ++r) row[r] = x + std::min(r, rows - 1) * x_stride;
  for (int c = 0; c < columns; c += C) {
    const W* column[C];
    for (int j = 0; j < C; ++j) column[j] = w + std::min(c + j, columns - 1) * w_stride;
    dot_block<R, C>(row, column, n, step, out + c);
  }
}

// out[r * kColumns + c] = sum over i < n of step(x[r][i], w[c][i]), for 1 <= rows <= kRows and
// 1 <= columns <= kColumns. All of out[kRows * kColumns] may be written.
template <class X, class W, class Step>
void dots(const X* x, int64_t x_stride, int rows, const W* w, int64_t w_stride, int columns,
          int64_t n, const Step& step, float* out) {
  const auto run = [&](auto count) {
    dot_rows<decltype(count)::value>(x, x_stride, rows, w, w_stride, columns, n, step, out);
  };
  if (rows == 1) return run(std::integral_constant<int, 1>{});
  if (rows == 2) return run(std::integral_constant<int, 2>{});
  if constexpr (kWide) {
    if (rows <= 4) return run(std::integral_constant<int, 4>{});
  }
  run(std::integral_constant<int, kRows>{});
}

}  // namespace
}  // namespace hexad
