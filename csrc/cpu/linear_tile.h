// The inner loops of linear over panels: 16 outputs, one to a lane, their inputs one after another.
//
// Order of sums, the same in every tile, for one row or many, packed or not: the inputs are cut
// into blocks of 128 counted from input 0; a block's sum is one chain of fma from zero, and blocks
// are added up in order. (Where bfloat16 meets bfloat16 on a machine with its dot product, a chain
// takes 256 inputs, a pair at a step; on one with tiles linear_amx.h sums them.) One chain over all
// inputs would lose accuracy.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/bytes.h"
#include "cpu/linear_finish.h"
#include "cpu/pairs.h"

namespace hexad {
namespace {

constexpr int kBlock = 128;                     // inputs of one chain
constexpr int kTall = kRegLanes == 16 ? 8 : 6;  // the most rows of a tile
constexpr int kPanelRegs = kPanel / kRegLanes;

// Asks for the lines of C panels that come 4 KB of work later: the machine's own prefetching
// follows too few streams, and none across pages. Among many rows it pays for bfloat16 pairs only,
// whose tiles ask the second-level cache for twice as much.
template <bool kAhead, int C, class W>
HEXAD_INLINE void fetch(const W* w, int64_t step) {
  if constexpr (kAhead)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c)
      __builtin_prefetch(reinterpret_cast<const char*>(w + c * step) + 4096 / C);
}

// How many rows the next tile takes of those left.
inline int tile_rows(int64_t left) {
  if (left <= kTall) return int(left);
  return left <= 12 ? int(left + 1) / 2 : 6;
}

// Panels that a tile of `rows` takes at once: what the registers hold.
constexpr int tile_panels(int rows) {
  const int most = kAccumulators / (rows * kPanelRegs);
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

template <int R, int C>
HEXAD_INLINE void add_to(float* sums, bool first, reg (&acc)[R][C * kPanelRegs]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < C * kPanelRegs; ++c) {
      float* to = sums + r * kWidth + c * kRegLanes;
      store_reg(to, first ? acc[r][c] : load_reg(to) + acc[r][c]);
    }
}

template <int R, int N>
HEXAD_INLINE void clear(reg (&acc)[R][N]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) acc[r][c] = set1_reg(0.f);
}

// Each kind of tile sums `n` inputs of R rows and C panels. Its panels are at w, w + step, ...

// float32 panels: 16 floats per input.
struct Floats {
  using X = float;
  static constexpr int kInputs = 1;  // of one word of a panel
  static constexpr int kChain = kBlock;
  static constexpr bool kFetch = false;

  // One word's inputs at x; `inputs` is less than kInputs where the row ends.
  static HEXAD_INLINE reg add(const float* x, reg w, reg sum, int) {
    return fma(set1_reg(*x), w, sum);
  }

  template <int R, int C, bool kAhead>
  static void tile(const float* x, int64_t stride, const int32_t* panels, int64_t step, int64_t n,
                   bool first, float* sums) {
    const float* w = reinterpret_cast<const float*>(panels);
    reg acc[R][C * kPanelRegs];
    clear(acc);
    for (int64_t i = 0; i < n; ++i, w += kPanel) {
      reg column[C * kPanelRegs];
      fetch<kAhead, C>(w, step);
#pragma GCC unroll 16
      for (int c = 0; c < C * kPanelRegs; ++c)
        column[c] = load_reg(w + c / kPanelRegs * step + c % kPanelRegs * kRegLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const reg row = set1_reg(x[r * stride + i]);
#pragma GCC unroll 16
        for (int c = 0; c < C * kPanelRegs; ++c) acc[r][c] = fma(row, column[c], acc[r][c]);
      }
    }
    add_to<R, C>(sums, first, acc);
  }
};

// bfloat16 panels, a word holding inputs 2i (low half) and 2i + 1, widened to float32.
struct Halves {
  using X = float;
  static constexpr int kInputs = 2;
  static constexpr int kChain = kBlock;
  static constexpr bool kFetch = false;

  static HEXAD_INLINE reg add(const float* x, reg w, reg sum, int inputs) {
    sum = fma(set1_reg(x[0]), (reg)((ireg)w << 16), sum);
    if (inputs == 1) return sum;
    return fma(set1_reg(x[1]), (reg)((ireg)w & int32_t(0xffff0000)), sum);
  }

  template <int R, int C, bool kAhead>
  static void tile(const float* x, int64_t stride, const int32_t* w, int64_t step, int64_t n,
                   bool first, float* sums) {
    reg acc[R][C * kPanelRegs];
    clear(acc);
    // Loaded anew for the odd inputs: both halves at once would not fit sixteen registers.
    const auto one = [&](int64_t i, auto&& half) __attribute__((always_inline)) {
      reg column[C * kPanelRegs];
#pragma GCC unroll 16
      for (int c = 0; c < C * kPanelRegs; ++c)
        column[c] = half(load<ireg>(w + c / kPanelRegs * step + c % kPanelRegs * kRegLanes));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const reg row = set1_reg(x[r * stride + i]);
#pragma GCC unroll 16
        for (int c = 0; c < C * kPanelRegs; ++c) acc[r][c] = fma(row, column[c], acc[r][c]);
      }
    };
    for (int64_t i = 0; i < n; i += 2, w += kPanel) {
      fetch<kAhead, C>(w, step);
      one(i, [](ireg both) __attribute__((always_inline)) { return (reg)(both << 16); });
      if (i + 1 == n) break;
      one(i + 1, [](ireg both)
                     __attribute__((always_inline)) { return (reg)(both & int32_t(0xffff0000)); });
    }
    add_to<R, C>(sums, first, acc);
  }
};

#if HEXAD_PAIRS
// The same panels, two inputs at a step.
struct Pairs {
  using X = bf16;
  static constexpr int kInputs = 2;
  static constexpr int kChain = 2 * kBlock;
  static constexpr bool kFetch = true;

  static HEXAD_INLINE reg add(const bf16* x, reg w, reg sum, int inputs) {
    if (inputs == kInputs) return dot(spread_pair(x), (pairs)w, sum);
    const bf16 last[2] = {x[0], {0}};
    return dot(spread_pair(last), (pairs)w, sum);
  }

  template <int R, int C, bool kAhead>
  static void tile(const bf16* x, int64_t stride, const int32_t* w, int64_t step, int64_t n,
                   bool first, float* sums) {
    reg acc[R][C];
    clear(acc);
    const auto one = [&](const auto& row) __attribute__((always_inline)) {
      pairs column[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) column[c] = load_pairs(w + c * step);
      fetch<kAhead, C>(w, step);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const pairs both = row(r);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[r][c] = dot(both, column[c], acc[r][c]);
      }
      w += kPanel;
    };
    int64_t i = 0;
    for (; i + 2 <= n; i += 2)
      one([&](int r) __attribute__((always_inline)) { return spread_pair(x + r * stride + i); });
    if (i < n)
      one([&](int r) __attribute__((always_inline)) {
        const bf16 last[2] = {x[r * stride + i], {0}};
        return spread_pair(last);
      });
    add_to<R, C>(sums, first, acc);
  }
};
#endif

template <class Kind, bool kAhead, int R, int C>
HEXAD_INLINE void tile_across(const typename Kind::X* x, int64_t stride, const int32_t* w,
                              int64_t step, int panels, int64_t n, bool first, float* sums) {
  int p = 0;
  for (; p + C <= panels; p += C)
    Kind::template tile<R, C, kAhead>(x, stride, w + p * step, step, n, first, sums + p * kPanel);
  if constexpr (C > 1) {
    if (p < panels)
      tile_across<Kind, kAhead, R, C / 2>(x, stride, w + p * step, step, panels - p, n, first,
                                          sums + p * kPanel);
  }
}

template <class Kind, bool kAhead, int R = 1>
void tile_any(int rows, const typename Kind::X* x, int64_t stride, const int32_t* w, int64_t step,
              int panels, int64_t n, bool first, float* sums) {
  if constexpr (R < kTall) {
    if (rows > R)
      return tile_any<Kind, kAhead, R + 1>(rows, x, stride, w, step, panels, n, first, sums);
  }
  tile_across<Kind, kAhead, R, tile_panels(R)>(x, stride, w, step, panels, n, first, sums);
}

// Rows of x as the tiles of Kind read them: where they are, or converted into `wide`.
template <class X>
struct Converted {
  const X* x;
  int64_t stride;
};
HEXAD_INLINE Converted<float> convert(const bf16* x, int64_t stride, int rows, int64_t n,
                                      float* wide) {
  for (int r = 0; r < rows; ++r) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(wide + r * kBlock + i, load(x + r * stride + i));
    if (i < n) store(wide + r * kBlock + i, load_part(x + r * stride + i, n - i));
  }
  return {wide, kBlock};
}
template <class X>
HEXAD_INLINE Converted<X> convert(const X* x, int64_t stride, int, int64_t, X*) {
  return {x, stride};
}

// One block of inputs for all rows of an item.
template <class Kind, class T>
void sum_block(const T* x, int64_t stride, int64_t rows, const int32_t* w, int64_t step, int panels,
               int64_t n, bool first, float* sums) {
  typename Kind::X wide[kTall * kBlock];
  for (int64_t r = 0; r < rows;) {
    const int height = tile_rows(rows - r);
    const auto rest = convert(x + r * stride, stride, height, n, wide);
    float* to = sums + r * kWidth;
    if (rows <= kTall) {
      tile_any<Kind, true>(height, rest.x, rest.stride, w, step, panels, n, first, to);
    } else {
      if (Kind::kFetch)
        for (int64_t j = r + height; j < std::min(rows, r + height + 6); ++j)
          for (int64_t i = 0; i < n; i += 64 / int64_t(sizeof(T)))
            __builtin_prefetch(x + j * stride + i);
      tile_any<Kind, Kind::kFetch>(height, rest.x, rest.stride, w, step, panels, n, first, to);
    }
    r += height;
  }
}

}  // namespace
}  // namespace hexad
