// Weights in panels of 16 outputs, element k of all 16 side by side: panel[k * 16 + output]. Every
// sum is made of chains over 64 successive k, added up in turn, so its bits depend on its
// own inputs only, while outputs or pixels may lie in the lanes and tiles may have any shape.
#pragma once

#include <algorithm>

#include "cpu/amx.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

constexpr int kPanelRegs = kLanes / kRegLanes;                   // registers of a panel's row
constexpr int kPanels = kAccumulators / 6 / kPanelRegs;          // side by side in a tile
constexpr int kTileRows = kAccumulators / kPanelRegs / kPanels;  // rows of a tile
static_assert(kPanels >= 1 && kTileRows == 6, "a tile fills the registers");

// One chain over all k would round too coarsely: its error grows with k, not with the root of k.
constexpr int64_t kChain = 64;

HEXAD_INLINE int64_t panels_of(int64_t outputs) {
  return (outputs + kLanes - 1) / kLanes;
}

// How elements k lie in rows of words, and how a word is multiplied: floats one by one ...
struct Multiply {
  static constexpr int64_t kElements = 1;
  static HEXAD_INLINE reg add(reg x, reg w, reg sum) { return fma(x, w, sum); }
  // 16 lanes of element k into rows[k * stride]. `fresh`: the word's other elements come later.
  static HEXAD_INLINE void put(float* rows, int64_t stride, int64_t k, vf v, bool) {
    store(rows + k * stride, v);
  }
};

// ... or bfloat16 in pairs, the even element in the lower half.
#if HEXAD_PAIRS
struct MultiplyPairs {
  static constexpr int64_t kElements = 2;
  static HEXAD_INLINE reg add(reg x, reg w, reg sum) { return dot((pairs)x, (pairs)w, sum); }
  static HEXAD_INLINE void put(float* rows, int64_t stride, int64_t k, vf v, bool fresh) {
    int32_t* to = reinterpret_cast<int32_t*>(rows + k / 2 * stride);
    const vi half = k % 2 ? bits(v) : bits(v) >> 16 & set1i(0xffff);
    store(to, fresh ? half : half | load(to));
  }
};
#endif

// What multiplies numbers of type T. Processors with tiles take longer over a pair than over two
// fma.
template <class T>
struct StepOf {
  using type = Multiply;
};
#if HEXAD_PAIRS && !HEXAD_TILES
template <>
struct StepOf<bf16> {
  using type = MultiplyPairs;
};
#endif
template <class T>
using Step = typename StepOf<T>::type;

template <class Step>
HEXAD_INLINE int64_t words_of(int64_t elements) {
  return (elements + Step::kElements - 1) / Step::kElements;
}

// A panel from up to 16 rows of convolution weights (inputs, kernel taps), of which the first
// `taps` taps count: k = tap * inputs + input. Rows beyond the last repeat it.
template <class Step, class T>
void pack_panel(const T* w, int64_t stride, int rows, int64_t inputs, int64_t kernel, int64_t taps,
                float* panel) {
  const int64_t size = inputs * kernel, last = (rows - 1) * stride;
  if (Step::kElements > 1) memset(panel, 0, words_of<Step>(inputs * taps) * kLanes * sizeof(float));
  int64_t tap = 0, input = 0;
  const auto place = [&](vf(&v)[kLanes], int64_t count) __attribute__((always_inline)) {
    transpose(v);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      if (j >= count) break;
      if (tap < taps) Step::put(panel, kLanes, tap * inputs + input, v[j], false);
      if (++tap == kernel) tap = 0, ++input;
    }
  };
  for (int64_t at = 0; at < size; at += kLanes) {
    const int64_t rest = std::min<int64_t>(kLanes, size - at);
    vf v[kLanes];
    if (rows == kLanes && rest == kLanes) {
      const T* from = w + at;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i, from += stride) v[i] = load(from);
      place(v, kLanes);
    } else {
      for (int i = 0; i < kLanes; ++i) v[i] = load_part(w + std::min(i * stride, last) + at, rest);
      place(v, rest);
    }
  }
}

// Rows whose words lie in `runs` pieces of `length`, `run_stride` apart: R pointers x.
struct Runs {
  int64_t count, stride, length;
};

// A chain's sums, R by N registers, into out: stored if they are the first, else added.
template <int R, int N>
HEXAD_INLINE void keep(reg (&sums)[R][N], float* out, int64_t stride, bool first) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* to = out + r * stride + n * kRegLanes;
      store_reg(to, first ? sums[r][n] : load_reg(to) + sums[r][n]);
    }
}

template <int R, int N>
HEXAD_INLINE void clear(reg (&sums)[R][N]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[r][n] = set1_reg(0.f);
}

// R rows by V panels, outputs in the lanes: out[r * out_stride + v * 16 + lane]. `first`: out holds
// no sums of elements before these.
template <class Step, int R, int V>
void panel_tile(const float* const* x, const Runs& runs, const float* panel, int64_t panel_stride,
                float* out, int64_t out_stride, bool first) {
  constexpr int N = V * kPanelRegs;
  reg sums[R][N];
  const float* row[R];
  int64_t run = 0, at = 0;
  do {
    clear(sums);
    for (int64_t left = kChain / Step::kElements; left > 0 && run < runs.count;) {
      const int64_t piece = std::min(left, runs.length - at);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] = x[r] + run * runs.stride + at;
#pragma GCC unroll 4
      for (int64_t k = 0; k < piece; ++k, panel += kLanes) {
        reg w[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
          w[n] = load_reg(panel + n / kPanelRegs * panel_stride + n % kPanelRegs * kRegLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const reg one = set1_reg(row[r][k]);
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) sums[r][n] = Step::add(one, w[n], sums[r][n]);
        }
      }
      left -= piece, at += piece;
      if (at == runs.length) at = 0, ++run;
    }
    keep(sums, out, out_stride, first);
    first = false;
  } while (run < runs.count);
}

template <class Step, int R>
void panel_rows(const float* const* x, const Runs& runs, const float* panel, int64_t panel_stride,
                int64_t panels, float* out, int64_t out_stride, bool first) {
  while (panels > 0) {
    int done = 1;
    if (panels >= kPanels) {
      panel_tile<Step, R, kPanels>(x, runs, panel, panel_stride, out, out_stride, first);
      done = kPanels;
    } else if (kPanels > 2 && panels >= 2) {
      panel_tile<Step, R, kPanels == 1 ? 1 : 2>(x, runs, panel, panel_stride, out, out_stride,
                                                first);
      done = 2;
    } else {
      panel_tile<Step, R, 1>(x, runs, panel, panel_stride, out, out_stride, first);
    }
    panels -= done, panel += done * panel_stride, out += done * kLanes;
  }
}

// out[r * out_stride + o] for up to 6 rows and all panels: room for 6 rows of 16 * panels sums.
template <class Step>
void multiply_rows(const float* const* x, int rows, const Runs& runs, const float* panel,
                   int64_t panel_stride, int64_t panels, float* out, int64_t out_stride,
                   bool first = true) {
  const float* row[kTileRows];
  for (int r = 0; r < kTileRows; ++r) row[r] = x[std::min(r, rows - 1)];
  if (rows == 1)
    panel_rows<Step, 1>(row, runs, panel, panel_stride, panels, out, out_stride, first);
  else if (rows == 2)
    panel_rows<Step, 2>(row, runs, panel, panel_stride, panels, out, out_stride, first);
  else if (rows <= 4)
    panel_rows<Step, 4>(row, runs, panel, panel_stride, panels, out, out_stride, first);
  else
    panel_rows<Step, 6>(row, runs, panel, panel_stride, panels, out, out_stride, first);
}

}  // namespace
}  // namespace hexad
