// act(x W^T + b) + residual with W as it lies, to the bits that linear_packed gives: a lane is an
// output, so squares of W are transposed in registers. A few rows take them from there; for many, a
// block of panels is made in scratch and summed by linear_packed's tiles.
#include "op/linear.h"

#include "cpu/linear_items.h"
#include "cpu/linear_tile.h"

namespace hexad {
namespace {

constexpr int kFew = kRegLanes == 16 ? 8 : 4;  // rows that are summed straight from squares

// A block of 16 rows of a weight, in words of one float32 or two bfloat16 inputs. Lanes beyond the
// last row read it again.
struct Block {
  const char* lane[kPanel];
  int64_t words;  // whole ones
  bool half;      // one more bfloat16 input

  template <class T>
  Block(const T* w, int64_t stride, int lanes, int64_t begin, int64_t n)
      : words(n * int64_t(sizeof(T)) / 4), half(sizeof(T) == 2 && n % 2) {
    for (int i = 0; i < kPanel; ++i)
      lane[i] = reinterpret_cast<const char*>(w + std::min(i, lanes - 1) * stride + begin);
  }

  // Words k to k + kRegLanes of lanes h to h + kRegLanes; asks for a share of the next block's
  // lines, a lane's in one go.
  HEXAD_INLINE void square(int64_t k, int h, reg* to) const {
#pragma GCC unroll 16
    for (int i = 0; i < kRegLanes; ++i) to[i] = load<reg>(lane[h + i] + k * 4);
    transpose(to);
    if (h) return;
    const int64_t end = std::min<int64_t>(kPanel, (k + kRegLanes) * kPanel / words);
    for (int64_t i = k * kPanel / words; i < end; ++i)
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

}  // namespace

namespace HEXAD_ISA {

void linear(const LinearArgs& a) {
  // Among a few rows each panel is read from end to end.
  for_items(a, a.rows <= kFew ? 1 : kPanels,
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
