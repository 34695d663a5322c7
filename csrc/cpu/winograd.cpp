// A 3 x 3 convolution by F(4 x 4, 3 x 3): the 6 x 6 inputs that a tile of 4 x 4 outputs sees become
// 36 numbers a channel, one for each pair of points; at each point the channels are a product with
// the weights; and 36 sums become the outputs. The transforms have 16 channels or outputs in the
// lanes; the products are weight_panel.h's, a point at a time, so that a point's weights are read
// once for all tiles. Each tile stands on its own, so neither batch nor threads change its bits.
#include "op/winograd.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/plain.h"
#include "cpu/stores.h"
#include "cpu/weight_panel.h"

namespace hexad {
namespace {

constexpr int kSide = 4, kSeen = 6;
constexpr int kAlong = 8;                  // tiles side by side that are transformed at once
constexpr int kSpan = kAlong * kSide + 2;  // inputs along them
constexpr int kGroup = 4;                  // panels of a product
constexpr int64_t kBlock = 128;            // inputs of a product at a time: whole chains
constexpr int64_t kItems = 2;              // products that a thread takes one after the other
constexpr int64_t kLeast = 131072;         // multiplications worth another thread
constexpr int64_t kRow = kAlong * kSide * kLanes;  // floats of a row of their outputs

// Tiles side by side, numbered along rows of tiles: those from `first`, whose outputs begin at row,
// col of an image.
struct Run {
  int64_t batch, row, col, first;
  int tiles;
};

struct Grid {
  int64_t down, across, runs;  // of an image; runs: of a row of tiles

  explicit Grid(const WinogradArgs& a)
      : down((a.height + kSide - 1) / kSide),
        across((a.width + kSide - 1) / kSide),
        runs((across + kAlong - 1) / kAlong) {}

  Run at(int64_t run) const {
    const int64_t row = run / runs, left = run % runs * kAlong;
    return {row / down, row % down * kSide, left * kSide, row * across + left,
            int(std::min<int64_t>(kAlong, across - left))};
  }
  int64_t first(int64_t run) const { return run / runs * across + run % runs * kAlong; }
};

// 16 channels of `count` pixels of a row into seen[pixel * 16 + channel].
void turn(const WinogradArgs& a, const float* x, int64_t channels, int64_t count, float* seen) {
  const int64_t apart = a.x_stride[1], step = a.x_stride[3];
  if (apart == 1) {
    for (int64_t i = 0; i < count; ++i, x += step, seen += kLanes)
      store(seen, channels == kLanes ? load(x) : load_part(x, channels));
    return;
  }
  for (; count > 0; count -= kLanes, x += kLanes * step, seen += kLanes * kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, count);
    vf v[kLanes];
    for (int c = 0; c < kLanes; ++c) {
      if (c >= channels) {
        v[c] = zero();
      } else if (step == 1) {
        v[c] = n == kLanes ? load(x + c * apart) : load_part(x + c * apart, n);
      } else {
        float lanes[kLanes] = {};
        for (int64_t i = 0; i < n; ++i) lanes[i] = x[c * apart + i * step];
        v[c] = load(lanes);
      }
    }
    transpose(v);
    for (int64_t i = 0; i < n; ++i) store(seen + i * kLanes, v[i]);
  }
}

// What a run sees of 16 channels; off the image it reads as zero.
void look(const WinogradArgs& a, const Run& run, int64_t channel, float (*seen)[kSpan * kLanes]) {
  const int64_t channels = std::min<int64_t>(kLanes, a.inputs - channel);
  const int64_t left = run.col - 1, span = run.tiles * kSide + 2;
  const int64_t begin = std::max<int64_t>(left, 0), end = std::min(a.width, left + span);
  for (int r = 0; r < kSeen; ++r) {
    const int64_t row = run.row - 1 + r;
    if (row < 0 || row >= a.height) {
      std::fill_n(seen[r], span * kLanes, 0.f);
      continue;
    }
    std::fill_n(seen[r], (begin - left) * kLanes, 0.f);
    turn(a,
         a.x + run.batch * a.x_stride[0] + channel * a.x_stride[1] + row * a.x_stride[2] +
             begin * a.x_stride[3],
         channels, end - begin, seen[r] + (begin - left) * kLanes);
    std::fill_n(seen[r] + (end - left) * kLanes, (left + span - end) * kLanes, 0.f);
  }
}

// Six inputs at the points 0, 1, -1, 2, -2 and infinity.
HEXAD_INLINE void to_points(const vf (&d)[kSeen], vf (&t)[kSeen]) {
  const vf four = set1(4.f), even = fma(set1(-4.f), d[2], d[4]), odd = fma(set1(-4.f), d[1], d[3]);
  const vf far = d[4] - d[2], near = d[3] - d[1];
  t[0] = fma(four, d[0], fma(set1(-5.f), d[2], d[4]));
  t[1] = even + odd;
  t[2] = even - odd;
  t[3] = fma(set1(2.f), near, far);
  t[4] = fma(set1(-2.f), near, far);
  t[5] = fma(four, d[1], fma(set1(-5.f), d[3], d[5]));
}

// Four outputs of six sums at those points.
HEXAD_INLINE void from_points(const vf (&m)[kSeen], vf (&y)[kSide]) {
  const vf sum = m[1] + m[2], difference = m[1] - m[2];
  const vf sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum + sum2;
  y[1] = fma(set1(2.f), difference2, difference);
  y[2] = fma(set1(4.f), sum2, sum);
  y[3] = fma(set1(8.f), difference2, difference) + m[5];
}

// A run's inputs, 16 channels of them, at all points: to[point * stride + tile * lanes].
void transform_inputs(const float (*seen)[kSpan * kLanes], int tiles, int64_t stride, int64_t lanes,
                      float* to) {
  for (int tile = 0; tile < tiles; ++tile, to += lanes) {
    float half[kSeen][kSeen][kLanes];
    for (int j = 0; j < kSeen; ++j) {
      vf d[kSeen], t[kSeen];
#pragma GCC unroll 6
      for (int i = 0; i < kSeen; ++i) d[i] = load(seen[i] + (tile * kSide + j) * kLanes);
      to_points(d, t);
#pragma GCC unroll 6
      for (int i = 0; i < kSeen; ++i) store(half[i][j], t[i]);
    }
    for (int i = 0; i < kSeen; ++i) {
      vf d[kSeen], t[kSeen];
#pragma GCC unroll 6
      for (int j = 0; j < kSeen; ++j) d[j] = load(half[i][j]);
      to_points(d, t);
#pragma GCC unroll 6
      for (int j = 0; j < kSeen; ++j) store(to + (i * kSeen + j) * stride, t[j]);
    }
  }
}

// 16 outputs of a run from the sums at all points: rows[i][(tile * 4 + j) * 16 + output].
void transform_outputs(const float* from, int tiles, int64_t stride, int64_t lanes, vf bias,
                       float (*rows)[kRow]) {
  for (int tile = 0; tile < tiles; ++tile, from += lanes) {
    float half[kSide][kSeen][kLanes];
    for (int j = 0; j < kSeen; ++j) {
      vf m[kSeen], y[kSide];
#pragma GCC unroll 6
      for (int i = 0; i < kSeen; ++i) m[i] = load(from + (i * kSeen + j) * stride);
      from_points(m, y);
#pragma GCC unroll 4
      for (int i = 0; i < kSide; ++i) store(half[i][j], y[i]);
    }
    for (int i = 0; i < kSide; ++i) {
      vf m[kSeen], y[kSide];
#pragma GCC unroll 6
      for (int j = 0; j < kSeen; ++j) m[j] = load(half[i][j]);
      from_points(m, y);
#pragma GCC unroll 4
      for (int j = 0; j < kSide; ++j) store(rows[i] + (tile * kSide + j) * kLanes, y[j] + bias);
    }
  }
}

// Those outputs to where they belong, a row of pixels for each.
void put_rows(const WinogradArgs& a, const Run& run, int64_t output, const float (*rows)[kRow]) {
  const int64_t outputs = std::min<int64_t>(kLanes, a.outputs - output), image = a.height * a.width;
  const int64_t width = std::min<int64_t>(run.tiles * kSide, a.width - run.col);
  for (int64_t i = 0; i < std::min<int64_t>(kSide, a.height - run.row); ++i) {
    float* y = a.y + (run.batch * a.outputs + output) * image + (run.row + i) * a.width + run.col;
    for (int64_t at = 0; at < width; at += kLanes, y += kLanes) {
      vf v[kLanes];
      for (int j = 0; j < kLanes; ++j) v[j] = load(rows[i] + (at + j) * kLanes);
      transpose(v);
      const int64_t n = std::min<int64_t>(kLanes, width - at);
      for (int64_t o = 0; o < outputs; ++o)
        n == kLanes ? store(y + o * image, v[o]) : store_part(y + o * image, v[o], n);
    }
  }
}

}  // namespace

namespace HEXAD_ISA {

void winograd(const WinogradArgs& a) {
  const Grid grid(a);
  const int64_t runs = a.batch * grid.down * grid.runs;
  const int64_t most = winograd_tiles(a.inputs, a.outputs, a.batch * grid.down * grid.across);
  const int64_t inputs = winograd_lanes(a.inputs), outputs = winograd_lanes(a.outputs);
  const int64_t points = most * inputs + kWinogradApart, sums = most * outputs + kWinogradApart;
  float *const transformed = a.workspace, *const products = transformed + kWinogradPoints * points;
  const int64_t blocks = inputs / kLanes, panels = outputs / kLanes;
  const int64_t groups = (panels + kGroup - 1) / kGroup, panel = a.inputs * kLanes;
  for (int64_t begin = 0, end = 0; begin < runs; begin = end) {
    const int64_t first = grid.first(begin);
    while (end < runs && grid.first(end + 1) - first <= most) ++end;
    const int64_t tiles = grid.first(end) - first;
    parallel_for((end - begin) * blocks, 8, [&](int64_t item, int64_t item_end) {
      alignas(64) float seen[kSeen][kSpan * kLanes];
      for (; item < item_end; ++item) {
        const Run run = grid.at(begin + item / blocks);
        const int64_t channel = item % blocks * kLanes;
        look(a, run, channel, seen);
        transform_inputs(seen, run.tiles, points, inputs,
                         transformed + (run.first - first) * inputs + channel);
      }
    });
    // Inputs go a block at a time, whose weights stay in the first-level cache under all tiles; the
    // block to come is asked for beside them.
    const auto multiply = [&](int64_t item, int64_t item_end) {
      for (; item < item_end; ++item) {
        const int64_t point = item / groups, p = item % groups * kGroup;
        const int64_t wide = std::min<int64_t>(kGroup, panels - p);
        const float* weights = a.taps + (point * panels + p) * panel;
        for (int64_t k = 0; k < std::max<int64_t>(a.inputs, 1); k += kBlock) {
          const int64_t n = std::min(kBlock, a.inputs - k);
          const bool last = k + kBlock >= a.inputs;
          const float* next = weights + (last ? wide * panel : (k + kBlock) * kLanes);
          const int64_t lines = last ? kBlock : std::min(kBlock, a.inputs - k - kBlock);
          const int64_t share = (lines * kTileRows + tiles - 1) / tiles;
          for (int64_t tile = 0, line = 0; tile < tiles; tile += kTileRows) {
            for (int64_t upto = std::min(lines, line + share); line < upto; ++line)
              for (int64_t q = 0; q < wide; ++q)
                __builtin_prefetch(next + q * panel + line * kLanes, 0, 2);
            const int rows = int(std::min<int64_t>(kTileRows, tiles - tile));
            const float* x[kTileRows];
            for (int r = 0; r < rows; ++r) {
              x[r] = transformed + point * points + (tile + r) * inputs + k;
              for (int64_t i = 0; i < n; i += kLanes)
                __builtin_prefetch(x[r] + kTileRows * inputs + i);
            }
            multiply_rows<Multiply>(x, rows, {1, 0, n}, weights + k * kLanes, panel, wide,
                                    products + point * sums + tile * outputs + p * kLanes, outputs,
                                    k == 0);
          }
        }
      }
    };
    const int64_t cost = tiles * std::min<int64_t>(panels, kGroup) * panel + 1;
    parallel_for(kWinogradPoints * groups, std::max<int64_t>(kItems, kLeast / cost), multiply);
    parallel_for((end - begin) * panels, 8, [&](int64_t item, int64_t item_end) {
      alignas(64) float rows[kSide][kRow];
      for (; item < item_end; ++item) {
        const Run run = grid.at(begin + item / panels);
        const int64_t output = item % panels * kLanes;
        const vf bias =
            a.bias ? load_part(a.bias + output, std::min<int64_t>(kLanes, a.outputs - output))
                   : zero();
        transform_outputs(products + (run.first - first) * outputs + output, run.tiles, sums,
                          outputs, bias, rows);
        put_rows(a, run, output, rows);
      }
    });
  }
}

}  // namespace HEXAD_ISA
}  // namespace hexad
