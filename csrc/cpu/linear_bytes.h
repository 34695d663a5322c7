// linear with weights of 8 or 4 bits: x is rounded to 8 bits, group by group of its inputs so that
// one large input costs only its own group precision; sums within a group are exact integers.
#pragma once

#include <algorithm>

#include "cpu/bytes.h"
#include "cpu/linear_finish.h"
#include "op/linear_packed.h"

namespace hexad {
namespace {

// Rows of x in the workspace: the bytes of each row, then, for each group, the scales of all rows,
// an integer and a float each.
template <int kGroup>
struct ByteRowsOf {
  // A group's room is left between rows where the workspace has it: rows 4 KB apart would share few
  // sets of the cache.
  static constexpr int kGroupWords = kGroup / 4 * kQuadWords;
  static constexpr int kGap = kQuadWords == 1 ? kGroupWords : 0;

  int32_t* at;
  int64_t stride, groups, rows;

  ByteRowsOf(int32_t* workspace, int64_t inputs, int64_t count)
      : at(workspace), groups((inputs + kGroup - 1) / kGroup), rows(count) {
    stride = groups * kGroupWords + kGap;
    head_ = at + rows * stride;
  }

  HEXAD_INLINE ByteRowsOf from(int64_t row) const {
    ByteRowsOf rest = *this;
    rest.at += row * stride, rest.head_ += row;
    return rest;
  }
  HEXAD_INLINE int32_t* head(int r, int64_t g, int which) const {
    return head_ + (which * groups + g) * rows + r;
  }
  HEXAD_INLINE float scale(int r, int64_t g) const { return as_float(head(r, g, 0)); }
  HEXAD_INLINE int32_t undo(int r, int64_t g) const { return *head(r, g, 1); }
  HEXAD_INLINE float sum(int r, int64_t g) const { return as_float(head(r, g, 2)); }
  HEXAD_INLINE const int32_t* quad(int r, int64_t q) const {
    return at + r * stride + q * kQuadWords;
  }

 private:
  static HEXAD_INLINE float as_float(const int32_t* p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
  }
  int32_t* head_;
};

// q = round(x * 127 / max |x|) over a group; a group with NaN or infinity has the scale NaN. Beside
// the scale: -offset * sum q, which undoes an offset added to the weights, and scale * sum q.
template <int kGroup, int kOffset, class T>
void to_bytes(const T* x, int64_t n, const ByteRowsOf<kGroup>& to) {
  for (int64_t g = 0; g < to.groups; ++g) {
    vf v[kGroup / kLanes];
    vf most = zero(), poison = zero();
    for (int j = 0; j < kGroup / kLanes; ++j) {
      const int64_t i = g * kGroup + j * kLanes, left = n - i;
      v[j] = left >= kLanes ? load(x + i) : left > 0 ? load_part(x + i, left) : zero();
      most = larger(most, abs(v[j]));
      poison = poison + (v[j] - v[j]);
    }
    const float bad = sum(poison), top = max_across(most);
    const float scale = top * (1.f / 127) + bad;
    const vf inverse = set1(top > 1e-30f ? 127.f / top : 0.f);
    vi total = set1i(0);
    int32_t* quads = to.at + g * to.kGroupWords;
    for (int j = 0; j < kGroup / kLanes; ++j) {
      const vi q = round_int(v[j] * inverse);
      total = total + q;
      store_quads(quads + j * 4 * kQuadWords, q);
    }
    uint32_t lane[kLanes], all = 0;
    memcpy(lane, &total, sizeof lane);
    for (int i = 0; i < kLanes; ++i) all += lane[i];
    const int32_t undo = int32_t(uint32_t(-kOffset) * all);
    const float scaled = scale * float(int32_t(all));
    memcpy(to.head(0, g, 0), &scale, sizeof scale);
    memcpy(to.head(0, g, 1), &undo, sizeof undo);
    memcpy(to.head(0, g, 2), &scaled, sizeof scaled);
  }
}

constexpr int kByteTall = kRegLanes == 16 ? 8 : 4;
constexpr int kByteRegs = kPanel / kRegLanes;

// What tiles ask the memory for beside their work. Those of two int8 panels ask for the four panels
// of the next item, two lines at a time by turns: the processor runs ahead of each stream that goes
// up by so many lines, and two streams would leave the memory waiting. Others ask for what lies
// ahead in their own panels: int4 with many rows is bound by instructions, and slower the first
// way.
struct NextPanels {
  const int32_t* of[4];
  uint64_t asked = 0;  // lines

  HEXAD_INLINE void ask() {
    const int32_t* const* two = of + (asked & 2);
    const uint64_t at = (asked & ~uint64_t(3)) * 4;
    __builtin_prefetch(two[0] + at, 0, 2);
    __builtin_prefetch(two[1] + at, 0, 2);
    asked += 2;
  }
};

// Tiles of more rows are bound by instructions, not by the memory: where a dot product takes two
// instructions or a panel two registers, sooner.
constexpr int memory_bound_rows(int most) {
  return kRegLanes < 16 ? 0 : kQuadWords > 1 ? 1 : most;
}

// Where C panels are read at w, w + step, ... Into the second level (kNear: the first) the memory
// is asked sooner: few lines can be on their way to the first.
template <int C, bool kNear>
HEXAD_INLINE void fetch_bytes(NextPanels* next, const int32_t* w, int64_t step) {
  if (C == 2 && next) return next->ask();
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) __builtin_prefetch(w + c * step + 1024 / C, 0, kNear ? 3 : 2);
}

// 8 bits: after 16 scales, words of four inputs, 128 added to each. The scales multiply at the end.
struct Int8 {
  static constexpr int kGroup = 64, kOffset = 128, kHeader = kPanel;
  static constexpr bool kNext = true;
  static constexpr int panels(int rows) { return kRegLanes < 16 ? 1 : rows <= 6 ? 4 : 2; }

  template <int R, int C>
  static void tile(const ByteRowsOf<kGroup>& x, const int32_t* w, int64_t step, int64_t begin,
                   int64_t end, int64_t quads, NextPanels* next, float* sums) {
    constexpr bool kNear = R > memory_bound_rows(kByteTall);
    w += begin * (kGroup / 4) * kPanel;
    for (int64_t g = begin; g < end; ++g) {
      ireg acc[R][C * kByteRegs];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C * kByteRegs; ++c) acc[r][c] = set1_ireg(x.undo(r, g));
      const int64_t last = std::min<int64_t>(quads, (g + 1) * (kGroup / 4));
      for (int64_t q = g * (kGroup / 4); q < last; ++q, w += kPanel) {
        ireg column[C * kByteRegs];
        fetch_bytes<C, kNear>(next, w, step);
#pragma GCC unroll 8
        for (int c = 0; c < C * kByteRegs; ++c)
          column[c] = load<ireg>(w + c / kByteRegs * step + c % kByteRegs * kRegLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int c = 0; c < C * kByteRegs; ++c)
            acc[r][c] = dot_quad(column[c], x.quad(r, q), acc[r][c]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C * kByteRegs; ++c) {
          float* to = sums + r * kWidth + c * kRegLanes;
          const reg before = g == 0 ? set1_reg(0.f) : load_reg(to);
          store_reg(to, fma(from_int(acc[r][c]), set1_reg(x.scale(r, g)), before));
        }
    }
  }
};

// 4 bits: per group of 32 inputs 16 words of a scale (low half, bfloat16) and a minimum (high
// half), then words of eight inputs, input j of the first four in the low half of byte j.
struct Int4 {
  static constexpr int kGroup = 32, kOffset = 8, kHeader = 0;
  static constexpr bool kNext = false;
  static constexpr int panels(int rows) { return kRegLanes < 16 ? 1 : rows <= 4 ? 4 : 2; }

  template <int R, int C>
  static void tile(const ByteRowsOf<kGroup>& x, const int32_t* w, int64_t step, int64_t begin,
                   int64_t end, int64_t, NextPanels*, float* sums) {
    constexpr int N = C * kByteRegs;
    constexpr bool kNear = R > memory_bound_rows(2);
    w += begin * 5 * kPanel;
    for (int64_t g = begin; g < end; ++g, w += 5 * kPanel) {
      ireg acc[R][N];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c) acc[r][c] = set1_ireg(x.undo(r, g));
      // Unrolled, each sum's eight steps would be lined up behind each other.
#pragma GCC unroll 1
      for (int j = 1; j <= 4; ++j) {
        ireg low[N], high[N];
        fetch_bytes<C, kNear>(nullptr, w + j * kPanel, step);
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c) {
          const int32_t* at = w + c / kByteRegs * step + j * kPanel + c % kByteRegs * kRegLanes;
          const ireg both = load<ireg>(at);
          low[c] = both & 0x0f0f0f0f, high[c] = (both >> 4) & 0x0f0f0f0f;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const int32_t* quad = x.quad(r, g * 8 + 2 * (j - 1));
#pragma GCC unroll 8
          for (int c = 0; c < N; ++c) {
            acc[r][c] = dot_quad(low[c], quad, acc[r][c]);
            acc[r][c] = dot_quad(high[c], quad + kQuadWords, acc[r][c]);
          }
        }
      }
      fetch_bytes<C, kNear>(nullptr, w, step);
#pragma GCC unroll 8
      for (int c = 0; c < N; ++c) {
        const int32_t* at = w + c / kByteRegs * step + c % kByteRegs * kRegLanes;
        const ireg both = load<ireg>(at);
        const reg scale = (reg)(both << 16);
        // The weight of q = 8, the middle: sums about it cancel less than those about q = 0.
        const reg middle = fma(scale, set1_reg(8.f), (reg)(both & int32_t(0xffff0000)));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          float* to = sums + r * kWidth + c * kRegLanes;
          const reg before = g == 0 ? set1_reg(0.f) : load_reg(to);
          const reg part = from_int(acc[r][c]) * set1_reg(x.scale(r, g));
          store_reg(to, fma(scale, part, fma(middle, set1_reg(x.sum(r, g)), before)));
        }
      }
    }
  }
};

template <class Form>
using ByteRows = ByteRowsOf<Form::kGroup>;

template <class Form, int R, int C>
void byte_tiles(const ByteRows<Form>& x, const int32_t* w, int64_t step, int panels, int64_t begin,
                int64_t end, int64_t quads, NextPanels* next, float* sums) {
  for (; panels >= C; panels -= C, w += C * step, sums += C * kPanel)
    Form::template tile<R, C>(x, w, step, begin, end, quads, next, sums);
  if constexpr (C > 1) {
    if (panels) byte_tiles<Form, R, C / 2>(x, w, step, panels, begin, end, quads, next, sums);
  }
}

template <class Form, int R = 1>
void byte_tile(int rows, const ByteRows<Form>& x, const int32_t* w, int64_t step, int panels,
               int64_t begin, int64_t end, int64_t quads, NextPanels* next, float* sums) {
  if constexpr (R < kByteTall) {
    if (rows > R)
      return byte_tile<Form, R + 1>(rows, x, w, step, panels, begin, end, quads, next, sums);
  }
  byte_tiles<Form, R, Form::panels(R)>(x, w, step, panels, begin, end, quads, next, sums);
}

// The scales of int8's outputs, at the head of each panel.
inline void scale_rows(const Group& group, const int32_t* const* panel, int64_t rows, float* sums) {
  for (int p = 0; p < group.panels; ++p) {
    const vf scale = load(reinterpret_cast<const float*>(panel[p]));
    for (int64_t r = 0; r < rows; ++r) {
      float* sum = sums + r * kWidth + p * kPanel;
      store(sum, load(sum) * scale);
    }
  }
}

// Sums of `rows` rows from row `first` of the workspace.
template <class Form>
void sum_bytes(const LinearPackedArgs& a, const Group& group, int64_t first, int64_t rows,
               float* sums) {
  const int64_t inputs = a.linear.inputs, words = a.linear.weight_stride;
  const int64_t quads = (inputs + 3) / 4;
  const ByteRows<Form> all(a.workspace, inputs, a.linear.rows);
  const int64_t groups = all.groups;
  const int32_t* panel[kPanels];
  for (int p = 0; p < group.panels; ++p)
    panel[p] = static_cast<const int32_t*>(a.linear.weight) + group.row[p] / kPanel * words;
  // Gates and their ups lie apart.
  const int near = gated(a.linear) ? group.panels / 2 : group.panels;
  NextPanels next{};
  const bool two =
      Form::kNext && group.panels == 4 && rows <= kByteTall && Form::panels(int(rows)) == 2;
  for (int p = 0; two && p < 4; ++p) next.of[p] = panel[p] + near * words;
  // Among many rows a block of inputs stays in the first-level cache.
  const int64_t block = rows <= kByteTall ? groups : 512 / Form::kGroup;
  for (int64_t g = 0; g < groups; g += block) {
    for (int64_t r = 0; r < rows;) {
      const int64_t left = rows - r;
      const int height = int(left <= kByteTall       ? left
                             : left <= 2 * kByteTall ? (left + 1) / 2
                                                     : std::min(6, kByteTall));
      const ByteRows<Form> x = all.from(first + r);
      for (int p = 0; p < group.panels; p += near)
        byte_tile<Form>(height, x, panel[p] + Form::kHeader, words, near, g,
                        std::min(groups, g + block), quads, two ? &next : nullptr,
                        sums + r * kWidth + p * kPanel);
      r += height;
    }
  }
  if (Form::kHeader) scale_rows(group, panel, rows, sums);
}

}  // namespace
}  // namespace hexad
