// linear's float32 sums of many rows: an item of up to 132 rows and 16 panels goes a chain of
// inputs at a time, four panels (a pass) after four, so that a chain of a pass stays in the
// first-level cache under all rows, and all else of an item in the second. The rows and sums that
// the tiles meet next, and where the outputs go, are asked for beside their products: the third
// level's latency is what would cost. (Asking for panels too gained nothing.)
#pragma once

#include "cpu/linear_items.h"
#include "cpu/linear_tile.h"

namespace hexad {
namespace {

// AVX2's tiles are a panel wide, and were 7 % slower so.
constexpr bool kPasses = kRegLanes == 16;
constexpr int kItemPanels = 16, kFloatRows = 132;  // the most of an item
constexpr int kAsk = 4;                            // inputs of a tile from one request to the next
constexpr int kShortest = 24;                      // rows of an item that is not cut further

// Rows and panels of an item: what keeps all threads busy, one of which may be slower than the
// others and leave an item to wait for, then what reads least again: a row of an item is read for
// all its panels, a panel for all its rows, at the cost of 13 rows' products.
struct Cut {
  int64_t height, width;
};
inline Cut cut_many(const LinearArgs& a) {
  const int64_t threads = parallel_threads(), panels = panels_of(a), step = gated(a) ? 2 : 4;
  const int64_t down = (a.rows + kFloatRows - 1) / kFloatRows;
  Cut best{};
  for (int64_t cuts = down, least = 0; cuts <= 16 * down; cuts *= 2) {
    const int64_t height = (a.rows + cuts - 1) / cuts;
    if (best.width && height < kShortest) break;
    for (int64_t width = 4 * step; width; width -= step) {
      const int64_t items = (a.rows + height - 1) / height * ((panels + width - 1) / width);
      const int64_t rounds = threads > 1 ? (items + threads - 1) / threads + 2 : items;
      const int64_t cost = rounds * (width * (height + 13) + height);
      if (!best.width || cost < least) least = cost, best = {height, width};
    }
  }
  return best;
}

// R rows, whose inputs lie side by side 16 at a time, by C panels: what Floats::tile sums.
// ask(s) runs before every kAsk inputs.
template <int R, int C, class Ask>
HEXAD_INLINE void tile_beside(const float* x, const float* const* w, int64_t n, bool first,
                              float* sums, const Ask& ask) {
  reg acc[R][C * kPanelRegs];
  clear(acc);
  const auto add = [&](const float* row, int64_t i) __attribute__((always_inline)) {
    reg column[C * kPanelRegs];
#pragma GCC unroll 16
    for (int c = 0; c < C * kPanelRegs; ++c)
      column[c] = load_reg(w[c / kPanelRegs] + i * kPanel + c % kPanelRegs * kRegLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const reg one = set1_reg(row[r * kLanes]);
#pragma GCC unroll 16
      for (int c = 0; c < C * kPanelRegs; ++c) acc[r][c] = fma(one, column[c], acc[r][c]);
    }
  };
  int64_t i = 0;
  for (; i + kAsk <= n; i += kAsk) {
    ask(i / kAsk);
    const float* row = x + i / kLanes * (R * kLanes) + i % kLanes;
#pragma GCC unroll 4
    for (int j = 0; j < kAsk; ++j) add(row + j, i + j);
  }
  for (; i < n; ++i) add(x + i / kLanes * (R * kLanes) + i % kLanes, i);
  add_to<R, C>(sums, first, acc);
}

template <int R, int C, class Ask>
HEXAD_INLINE void tiles_beside(int panels, const float* x, const float* const* w, int64_t n,
                               bool first, float* sums, const Ask& ask) {
  int p = 0;
  for (; p + C <= panels; p += C)
    tile_beside<R, C>(x, w + p, n, first, sums + p * kPanel,
                      [&](int64_t s) __attribute__((always_inline)) {
                        if (!p) ask(s);
                      });
  if constexpr (C > 1) {
    if (p < panels) tiles_beside<R, C / 2>(panels - p, x, w + p, n, first, sums + p * kPanel, ask);
  }
}

template <int R = kTall, class Ask>
void rows_beside(int rows, int panels, const float* x, const float* const* w, int64_t n, bool first,
                 float* sums, const Ask& ask) {
  if constexpr (R > 1) {
    if (rows < R) return rows_beside<R - 1>(rows, panels, x, w, n, first, sums, ask);
  }
  tiles_beside<R, tile_panels(R)>(panels, x, w, n, first, sums, ask);
}

// n inputs of some rows side by side, 16 at a time.
template <class T>
void lay_beside(const T* x, int64_t stride, int rows, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += kLanes)
    for (int r = 0; r < rows; ++r, to += kLanes)
      store(to, i + kLanes <= n ? load(x + r * stride + i) : load_part(x + r * stride + i, n - i));
}

// An item. Weights has at(p, k), panel p from input k on, ready once prepare(k, n) ran.
template <class T, class Weights>
void sum_many_floats(const LinearArgs& a, const GroupOf<kItemPanels>& group, int64_t first,
                     int64_t rows, Weights& weights) {
  alignas(64) float sums[kItemPanels / kPanels][kFloatRows * kWidth];
  alignas(64) float beside[kFloatRows * kBlock];
  const int outputs = gated(a) ? group.panels / 2 : group.panels, wide = gated(a) ? 2 : kPanels;
  const int passes = (outputs + wide - 1) / wide;
  const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
  // Panel q of a pass as a panel of the item: a gate's ups follow its gates.
  const auto panel = [&](int pass, int q) {
    const int count = std::min(wide, outputs - pass * wide);
    return q < count ? pass * wide + q : outputs + pass * wide + q - count;
  };
  const auto panels = [&](int pass) {
    return std::min(wide, outputs - pass * wide) * (gated(a) ? 2 : 1);
  };
  for (int64_t k = 0; k < a.inputs; k += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, a.inputs - k);
    const bool last = k + kBlock >= a.inputs;
    weights.prepare(k, n);
    for (int pass = 0; pass < passes; ++pass) {
      const float* w[kPanels];
      Group part{panels(pass), {}, {}};
      for (int q = 0; q < part.panels; ++q) {
        const int p = panel(pass, q);
        w[q] = weights.at(p, k);
        part.row[q] = group.row[p], part.lanes[q] = group.lanes[p];
      }
      for (int64_t r = 0; r < rows;) {
        const int height = tile_rows(rows - r);
        float* left = beside + r * kBlock;
        float* to = sums[pass] + r * kWidth;
        if (!pass) lay_beside(x + r * a.x_stride + k, a.x_stride, height, n, left);
        const T* ahead = x + (r + height) * a.x_stride + k;
        const T* y = static_cast<const T*>(a.y) + (first + r) * a.y_stride;
        const T* more = static_cast<const T*>(a.residual);
        if (more) more += (first + r) * a.residual_stride;
        const auto ask = [&](int64_t s) __attribute__((always_inline)) {
          const int64_t row = s / 4, q = s % 4;
          if (row < 6) {
            if (k) __builtin_prefetch(to + s * kLanes);
            if (last && row < height) {
              const int64_t column = part.row[q & (wide - 1)];
              __builtin_prefetch(y + row * a.y_stride + column, 1);
              if (more) __builtin_prefetch(more + row * a.residual_stride + column);
            }
            if (!pass && r + height + row < rows)
              for (int i = 0; i < 2; ++i)
                __builtin_prefetch(ahead + row * a.x_stride + (2 * q + i) * kLanes);
          }
        };
        rows_beside(height, part.panels, left, w, n, k == 0, to, ask);
        if (last) finish<T>(a, part, first + r, height, to);
        r += height;
      }
    }
  }
}

}  // namespace
}  // namespace hexad
