// act(x W^T + b) + residual with W as it lies: a block of its panels is made in scratch, as
// linear_packed finds them in memory, and then summed by the same tiles to the same bits.
#include "op/linear.h"

#include "cpu/linear_items.h"
#include "cpu/linear_tile.h"

namespace hexad {
namespace {

constexpr int kFetch = 512;  // bytes ahead in each row

// 16 rows of words to 16 words per input: the squares of the matrix transposed in registers.
// `row` has `before` words that may be read in front of its first one, and n > 0 of its own.
void interleave(const char* row, int64_t stride, int lanes, int64_t before, int64_t n,
                int32_t* panel) {
  const char* lane[kPanel];
  for (int i = 0; i < kPanel; ++i) lane[i] = row + std::min(i, lanes - 1) * stride;
  constexpr int L = kRegLanes;
  for (int64_t k = 0; k < n; k += L) {
    // The last square overlaps what is done already, rather than reading past the row.
    const int64_t from = std::min(k, n - L);
    if (from < -before) {
      for (int64_t i = k; i < n; ++i)
        for (int j = 0; j < kPanel; ++j) memcpy(panel + i * kPanel + j, lane[j] + i * 4, 4);
      return;
    }
    for (int h = 0; h < kPanel; h += L) {
      reg square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        square[i] = load<reg>(lane[h + i] + from * 4);
        if (from % kPanel == 0) __builtin_prefetch(lane[h + i] + from * 4 + kFetch);
      }
      transpose(square);
      int32_t* to = panel + from * kPanel + h;
      if (from == k) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) memcpy(to + i * kPanel, &square[i], sizeof(reg));
      } else {
        for (int i = int(k - from); i < L; ++i) memcpy(to + i * kPanel, &square[i], sizeof(reg));
      }
    }
  }
}

void make_panel(const float* w, int64_t stride, int lanes, int64_t begin, int64_t n,
                int32_t* panel) {
  interleave(reinterpret_cast<const char*>(w + begin), stride * 4, lanes, begin, n, panel);
}

void make_panel(const bf16* w, int64_t stride, int lanes, int64_t begin, int64_t n,
                int32_t* panel) {
  if (n > 1)
    interleave(reinterpret_cast<const char*>(w + begin), stride * 2, lanes, begin / 2, n / 2,
               panel);
  if (n % 2)
    for (int j = 0; j < kPanel; ++j)
      panel[n / 2 * kPanel + j] = w[std::min(j, lanes - 1) * stride + begin + n - 1].raw;
}

template <class Kind, class T>
void sum_unpacked(const LinearArgs& a, const Group& group, int64_t first, int64_t rows,
                  float* sums) {
  alignas(64) int32_t panels[kPanels * kBlock / Kind::kInputs * kPanel];
  const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
  for (int64_t k = 0; k < a.inputs; k += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, a.inputs - k);
    constexpr int64_t step = kBlock / Kind::kInputs * kPanel;
    for (int p = 0; p < group.panels; ++p)
      make_panel(static_cast<const T*>(a.weight) + group.row[p] * a.weight_stride, a.weight_stride,
                 group.lanes[p], k, n, panels + p * step);
    sum_block<Kind>(x + k, a.x_stride, rows, panels, step, group.panels, n, k == 0, sums);
  }
}

}  // namespace

namespace HEXAD_ISA {

void linear(const LinearArgs& a) {
  // For a few rows the panels in the making should not leave the first-level cache.
  for_items(a, a.rows <= 8 ? 2 : kPanels,
            [&](const Group& group, int64_t first, int64_t rows, float* sums) {
              if (!a.bf16) return sum_unpacked<Floats, float>(a, group, first, rows, sums);
#if HEXAD_PAIRS
              return sum_unpacked<Pairs, bf16>(a, group, first, rows, sums);
#else
              return sum_unpacked<Halves, bf16>(a, group, first, rows, sums);
#endif
            });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
