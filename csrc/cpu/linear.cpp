// act(x W^T + b) + residual with W as it lies, to the bits that linear_packed gives: a lane is an
// output, so squares of W are transposed in registers. A few rows take them from there; for many, a
// block of panels is made in scratch and summed by linear_packed's tiles.
#include "op/linear.h"

#include "cpu/linear_amx.h"
#include "cpu/linear_items.h"
#include "cpu/linear_many.h"
#include "cpu/linear_tile.h"
#include "cpu/plain.h"
#include "cpu/turn.h"

namespace hexad {
namespace {

constexpr int kFew = kRegLanes == 16 ? 8 : 4;  // rows that are summed straight from squares

// A block of 16 rows of a weight, in words of one float32 or two bfloat16 inputs. Lanes beyond the
// last row read it again.
struct Block {
  const char* lane[kPanel];
  int64_t words;  // whole ones
  bool half;      // one more bfloat16 input
  int64_t share;  // lanes asked for beside a word, in 2^-32

  template <class T>
  Block(const T* w, int64_t stride, int lanes, int64_t begin, int64_t n)
      : words(n * int64_t(sizeof(T)) / 4),
        half(sizeof(T) == 2 && n % 2),
        share((int64_t(kPanel) << 32) / std::max<int64_t>(1, words) + 1) {
    for (int i = 0; i < kPanel; ++i)
      lane[i] = reinterpret_cast<const char*>(w + std::min(i, lanes - 1) * stride + begin);
  }

  // Words k to k + kRegLanes of lanes h to h + kRegLanes; asks for a share of the next block's
  // lines, a lane's in one go.
  HEXAD_INLINE void square(int64_t k, int h, reg* to) const {
    load_turned(reinterpret_cast<const void* const*>(lane + h), k * 4, to);
    if (h) return;
    const int64_t end = std::min<int64_t>(kPanel, ((k + kRegLanes) * share) >> 32);
    for (int64_t i = (k * share) >> 32; i < end; ++i)
      for (int64_t line = 0; line < words * 4; line += 64)
        __builtin_prefetch(lane[i] + words * 4 + line);
  }

  // The words from k on, one input after another.
  void rest(int64_t k, int32_t* panel) const {
    for (; k < words; ++k)
      for (int j = 0; j < kPanel; ++j) memcpy(panel++, lane[j] + k * 4, 4);
    if (!half) return;
    for (int j = 0; j < kPanel; ++j) {
      uint16_t last;
      memcpy(&last, lane[j] + k * 4, 2);
      *panel++ = last;
    }
  }

  void panel(int32_t* to) const {
    int64_t k = 0;
    for (; k + kRegLanes <= words; k += kRegLanes)
      for (int h = 0; h < kPanel; h += kRegLanes) {
        reg inputs[kRegLanes];
        square(k, h, inputs);
#pragma GCC unroll 16
        for (int i = 0; i < kRegLanes; ++i)
          memcpy(to + (k + i) * kPanel + h, &inputs[i], sizeof(reg));
      }
    rest(k, to + k * kPanel);
  }
};

// R rows by one block.
template <class Kind, int R>
void sum_squares(const typename Kind::X* x, int64_t stride, const Block& w, bool first,
                 float* sums) {
  alignas(64) int32_t rest[kRegLanes * kPanel];
  const int64_t whole = w.words / kRegLanes * kRegLanes;
  const int64_t after = w.words - whole + w.half;
  if (after) w.rest(whole, rest);
  for (int h = 0; h < kPanel; h += kRegLanes) {
    reg acc[R][1];
    clear(acc);
    const auto add = [&](int64_t k, reg word, int inputs) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        acc[r][0] = Kind::add(x + r * stride + k * Kind::kInputs, word, acc[r][0], inputs);
    };
    for (int64_t k = 0; k < whole; k += kRegLanes) {
      reg inputs[kRegLanes];
      w.square(k, h, inputs);
#pragma GCC unroll 16
      for (int i = 0; i < kRegLanes; ++i) add(k + i, inputs[i], Kind::kInputs);
    }
    for (int64_t i = 0; i < after; ++i)
      add(whole + i, load<reg>(rest + i * kPanel + h),
          w.half && i + 1 == after ? 1 : Kind::kInputs);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* to = sums + r * kWidth + h;
      store_reg(to, first ? acc[r][0] : load_reg(to) + acc[r][0]);
    }
  }
}

template <class Kind, int R = 1>
void sum_few(int rows, const typename Kind::X* x, int64_t stride, const Block& w, bool first,
             float* sums) {
  if constexpr (R < kFew) {
    if (rows > R) return sum_few<Kind, R + 1>(rows, x, stride, w, first, sums);
  }
  sum_squares<Kind, R>(x, stride, w, first, sums);
}

template <class Kind, class T>
void sum_unpacked(const LinearArgs& a, const Group& group, int64_t first, int64_t rows,
                  float* sums) {
  constexpr int64_t step = Kind::kChain / Kind::kInputs * kPanel;
  alignas(64) int32_t panels[kPanels * step];
  const auto block = [&](int p, int64_t k, int64_t n) {
    return Block(static_cast<const T*>(a.weight) + group.row[p] * a.weight_stride, a.weight_stride,
                 group.lanes[p], k, n);
  };
  const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
  for (int64_t k = 0; k < a.inputs; k += Kind::kChain) {
    const int64_t n = std::min<int64_t>(Kind::kChain, a.inputs - k);
    if (rows <= kFew) {
      typename Kind::X wide[kFew * kBlock];
      const auto row = convert(x + k, a.x_stride, int(rows), n, wide);
      for (int p = 0; p < group.panels; ++p)
        sum_few<Kind>(int(rows), row.x, row.stride, block(p, k, n), k == 0, sums + p * kPanel);
    } else {
      for (int p = 0; p < group.panels; ++p) block(p, k, n).panel(panels + p * step);
      sum_block<Kind>(x + k, a.x_stride, rows, panels, step, group.panels, n, k == 0, sums);
    }
  }
}

// A chain of an item's panels in scratch.
struct FloatSquares {
  const LinearArgs& a;
  const GroupOf<kItemPanels>& group;
  alignas(64) int32_t panels[kItemPanels][kBlock * kPanel];

  FloatSquares(const LinearArgs& args, const GroupOf<kItemPanels>& of) : a(args), group(of) {}
  void prepare(int64_t k, int64_t n) {
    for (int p = 0; p < group.panels; ++p)
      Block(static_cast<const float*>(a.weight) + group.row[p] * a.weight_stride, a.weight_stride,
            group.lanes[p], k, n)
          .panel(panels[p]);
  }
  HEXAD_INLINE const float* at(int p, int64_t) const {
    return reinterpret_cast<const float*>(panels[p]);
  }
};

void run_many_floats(const LinearArgs& a) {
  const Cut cut = cut_many(a);
  for_cuts<kItemPanels>(a, cut.height, cut.width,
                        [&](const GroupOf<kItemPanels>& group, int64_t first, int64_t rows) {
                          FloatSquares panels(a, group);
                          sum_many_floats<float>(a, group, first, rows, panels);
                        });
}

#if HEXAD_TILES
// Up to 16 rows by strips of 16 R outputs, of which `height` exist: the weight is A where it lies,
// x is B, and the sums come out turned. Strips begin at the panels from `begin` on.
template <int R>
void sum_strips(const LinearArgs& a, const Group& group, int begin, int end, int height,
                float* sums) {
  constexpr int kInputs = 256;  // at a time
  alignas(64) int32_t pairs[kInputs / kStep * kTileWords];
  alignas(64) float turned[kPanels][kSquare * kSquare];
  const int32_t* const b[1] = {pairs};
  const int rows = int(a.rows), near = gated(a) ? group.panels / 2 : group.panels;
  const bf16* weight = static_cast<const bf16*>(a.weight);
  const RowTiles<R> tiles(height);
  for (int64_t k = 0; k == 0 || k < a.inputs; k += kInputs) {
    const int64_t n = std::min<int64_t>(kInputs, a.inputs - k);
    for (int64_t i = 0; i < n; i += kStep)
      pair_tile(static_cast<const bf16*>(a.x) + k + i, a.x_stride, rows, n - i,
                pairs + i / kStep * kTileWords);
    settle();
    for (int h = 0; h < group.panels; h += near)
      for (int p = h + begin; p < h + end; p += R) {
        const bf16* from = weight + group.row[p] * a.weight_stride;
        // The next cut of these outputs, or the first of those that follow the item's.
        const bf16* after = k + kInputs < a.inputs
                                ? from + k + kInputs
                                : from + int64_t(near) * kPanel * a.weight_stride;
        sum_rows<R, 1, true>(from + k, a.weight_stride, height, b, n, k == 0, turned[p],
                             [&](int64_t t) {
                               for (int r = 0; r < height; ++r)
                                 __builtin_prefetch(after + r * a.weight_stride + t * kStep, 0, 2);
                             });
      }
  }
  for (int h = 0; h < group.panels; h += near)
    for (int p = h + begin; p < h + end; ++p) {
      const int of = (p - h - begin) % R;
      const float* from = turned[p - of] + of * kTileSide * kSumWidth<1>;
      reg square[kLanes];
      for (int i = 0; i < kLanes; ++i)
        square[i] = i < group.lanes[p] ? load_reg(from + i * kSumWidth<1>) : set1_reg(0.f);
      transpose(square);
      for (int r = 0; r < rows; ++r) store_reg(sums + r * kWidth + p * kPanel, square[r]);
    }
}

// Panels made in scratch, one cut while the cut before is summed, a tile at a time.
struct Transposed {
  const LinearArgs& a;
  const GroupOf<kManyPanels>& group;
  int pieces;
  int64_t made = -1;  // the cut that was prepared last, in panels[flip]
  int flip = 1;
  alignas(64) int32_t panels[2][kManyPanels][kCutWords];

  Transposed(const LinearArgs& args, const GroupOf<kManyPanels>& of)
      : a(args), group(of), pieces(of.panels * kCutSteps) {}

  HEXAD_INLINE const int32_t* at(int p, int64_t k) const {
    return panels[k == made ? flip : flip ^ 1][p];
  }
  HEXAD_INLINE void prepare(int64_t k, int64_t n, int i) {
    if (k != made) made = k, flip ^= 1;
    const bf16* weight = static_cast<const bf16*>(a.weight);
    const auto tile = [&](int j) {
      return weight + group.row[j / kCutSteps] * a.weight_stride + k + j % kCutSteps * kStep;
    };
    const int ahead = i + kCutSteps;
    if (ahead < pieces)
      for (int r = 0; r < group.lanes[ahead / kCutSteps]; ++r)
        __builtin_prefetch(tile(ahead) + r * a.weight_stride);
    const int64_t left = n - i % kCutSteps * kStep;
    if (left > 0)
      pair_tile(tile(i), a.weight_stride, group.lanes[i / kCutSteps], left,
                panels[flip][i / kCutSteps] + i % kCutSteps * kTileWords);
  }
};

void run_tiles(const LinearArgs& a) {
  if (a.rows <= kTileSide)
    return for_groups<kPanels>(a, kSquare, kSquare, kPanels,
                               [&](const Group& group, int64_t, int64_t) {
                                 alignas(64) float sums[kTileSide * kWidth];
                                 const int near = gated(a) ? group.panels / 2 : group.panels;
                                 int height = 0;
                                 for (int p = 0; p < near; ++p) height += group.lanes[p];
                                 const int full = height / kSquare * 2, rest = height % kSquare;
                                 if (full) sum_strips<2>(a, group, 0, full, kSquare, sums);
                                 if (rest > kTileSide)
                                   sum_strips<2>(a, group, full, near, rest, sums);
                                 else if (rest)
                                   sum_strips<1>(a, group, full, near, rest, sums);
                                 finish<bf16>(a, group, 0, a.rows, sums);
                               });
  for_groups<kManyPanels>(a, many_rows(a), kSquare, kManyPanels,
                          [&](const GroupOf<kManyPanels>& group, int64_t first, int64_t rows) {
                            Transposed panels(a, group);
                            sum_many<true>(a, group, first, rows, panels);
                          });
}
#endif

// Among a few rows each panel is read from end to end.
template <class Kind, class T>
void run(const LinearArgs& a) {
  for_items(a, a.rows <= kFew ? 1 : kPanels,
            [&](const Group& group, int64_t first, int64_t rows, float* sums) {
              sum_unpacked<Kind, T>(a, group, first, rows, sums);
            });
}

}  // namespace

namespace HEXAD_ISA {

void linear(const LinearArgs& a) {
#if HEXAD_SHARES
  if (!a.bf16) return HEXAD_PLAIN::linear(a);
#else
  if (!a.bf16)
    return kPasses && a.rows > kFew && a.inputs ? run_many_floats(a) : run<Floats, float>(a);
#endif
#if HEXAD_TILES
  run_tiles(a);
#elif HEXAD_PAIRS
  run<Pairs, bf16>(a);
#else
  run<Halves, bf16>(a);
#endif
}

}  // namespace HEXAD_ISA
}  // namespace hexad
