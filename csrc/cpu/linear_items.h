// How linear's work is cut up: items of rows by panels, each summed and then finished.
#pragma once

#include <algorithm>

#include "cpu/linear_finish.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

inline int64_t panels_of(const LinearArgs& a) {
  return ((gated(a) ? a.outputs / 2 : a.outputs) + kPanel - 1) / kPanel;
}

// work(group, first, rows) for items of `height` rows by `width` panels of outputs; N is the most
// panels of an item, a gate's ups included. How the work is cut changes no output's bits.
template <int N, class Work>
void for_cuts(const LinearArgs& a, int64_t height, int64_t width, const Work& work) {
  const int64_t columns = gated(a) ? a.outputs / 2 : a.outputs, panels = panels_of(a);
  const int64_t down = (a.rows + height - 1) / height, across = (panels + width - 1) / width;
  const int64_t cost = std::min(a.rows, height) * width * kPanel * std::max<int64_t>(a.inputs, 1);
  parallel_for(across * down, std::max<int64_t>(1, 131072 / cost), [&](int64_t item, int64_t end) {
    for (; item < end; ++item) {
      const int64_t first = item % down * height, panel = item / down * width;
      const int64_t rows = std::min(height, a.rows - first);
      const int count = int(std::min(width, panels - panel));
      GroupOf<N> group{gated(a) ? 2 * count : count, {}, {}};
      for (int p = 0; p < count; ++p) {
        group.row[p] = (panel + p) * kPanel;
        group.lanes[p] = int(std::min<int64_t>(kPanel, columns - group.row[p]));
        if (!gated(a)) continue;
        group.row[count + p] = group.row[p] + columns;
        group.lanes[count + p] = group.lanes[p];
      }
      work(group, first, rows);
    }
  });
}

// The same for items of up to `tallest` rows, cut at multiples of `step`, and N panels; `widest` is
// the most panels of an item.
template <int N, class Work>
void for_groups(const LinearArgs& a, int64_t tallest, int step, int widest, const Work& work) {
  const int64_t panels = panels_of(a), down = (a.rows + tallest - 1) / tallest;
  if (!panels || !down) return;
  const int64_t height =
      std::min<int64_t>(tallest, ((a.rows + down - 1) / down + step - 1) / step * step);
  int64_t width = gated(a) ? (widest + 1) / 2 : widest;
  const int64_t threads = parallel_threads();
  while (width > 1 && (panels + width - 1) / width * down < 2 * threads) width /= 2;
  for_cuts<N>(a, height, width, work);
}

// sum(group, first, rows, sums) fills sums[r * kWidth + 16 p + lane] for an item, which is then
// finished. Heights are multiples of kHeight, by default the height of a tile among many rows.
template <int kTallest = kItemRows, int kHeight = 6, class Sum>
void for_items(const LinearArgs& a, int widest, const Sum& sum) {
  for_groups<kPanels>(a, kTallest, kHeight, widest,
                      [&](const Group& group, int64_t first, int64_t rows) {
                        alignas(64) float sums[kTallest * kWidth];
                        if (a.inputs) {
                          sum(group, first, rows, sums);
                        } else {
                          for (int64_t i = 0; i < rows * kWidth; ++i) sums[i] = 0;
                        }
                        a.bf16 ? finish<bf16>(a, group, first, rows, sums)
                               : finish<float>(a, group, first, rows, sums);
                      });
}

}  // namespace
}  // namespace hexad
