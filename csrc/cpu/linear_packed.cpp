// act(x W^T + b) + residual with W in panels of 16 outputs, read once for up to eight rows.
#include "op/linear_packed.h"

#include "cpu/linear_amx.h"
#include "cpu/linear_bytes.h"
#include "cpu/linear_bytes_amx.h"
#include "cpu/linear_items.h"
#include "cpu/linear_many.h"
#include "cpu/linear_tile.h"
#include "cpu/plain.h"

namespace hexad {
namespace {

template <class Kind, class T>
void sum_packed(const LinearArgs& a, const Group& group, int64_t first, int64_t rows, float* sums) {
  const T* x = static_cast<const T*>(a.x) + first * a.x_stride;
  // Gates and their ups lie apart.
  const int near = gated(a) ? group.panels / 2 : group.panels;
  for (int64_t k = 0; k < a.inputs; k += Kind::kChain) {
    const int64_t n = std::min<int64_t>(Kind::kChain, a.inputs - k);
    for (int p = 0; p < group.panels; p += near)
      sum_block<Kind>(x + k, a.x_stride, rows,
                      static_cast<const int32_t*>(a.weight) +
                          group.row[p] / kPanel * a.weight_stride + k / Kind::kInputs * kPanel,
                      a.weight_stride, near, n, k == 0, sums + p * kPanel);
  }
}

// Panels where they lie.
struct FloatPanels {
  const float* of[kItemPanels];

  void prepare(int64_t, int64_t) const {}
  HEXAD_INLINE const float* at(int p, int64_t k) const { return of[p] + k * kPanel; }
};

void run_many_floats(const LinearArgs& a) {
  const Cut cut = cut_many(a);
  for_cuts<kItemPanels>(a, cut.height, cut.width,
                        [&](const GroupOf<kItemPanels>& group, int64_t first, int64_t rows) {
                          FloatPanels panels;
                          for (int p = 0; p < group.panels; ++p)
                            panels.of[p] = static_cast<const float*>(a.weight) +
                                           group.row[p] / kPanel * a.weight_stride;
                          a.bf16 ? sum_many_floats<bf16>(a, group, first, rows, panels)
                                 : sum_many_floats<float>(a, group, first, rows, panels);
                        });
}

template <class Kind>
void run(const LinearArgs& a) {
  if (!a.rows) return;
  if (kPasses && std::is_same<Kind, Floats>::value && a.rows > kTall && a.inputs)
    return run_many_floats(a);
  for_items(a, a.rows <= kTall ? tile_panels(int(a.rows)) : kPanels,
            [&](const Group& group, int64_t first, int64_t rows, float* sums) {
              if constexpr (std::is_same<typename Kind::X, float>::value)
                a.bf16 ? sum_packed<Kind, bf16>(a, group, first, rows, sums)
                       : sum_packed<Kind, float>(a, group, first, rows, sums);
              else
                sum_packed<Kind, bf16>(a, group, first, rows, sums);
            });
}

#if HEXAD_TILES
// Panels are summed where they lie; those of the next cut are asked for, line by line.
struct Panels {
  const int32_t* of[kManyPanels];
  int pieces;

  HEXAD_INLINE const int32_t* at(int p, int64_t k) const { return of[p] + k / 2 * kPanel; }
  HEXAD_INLINE void prepare(int64_t k, int64_t, int i) const {
    constexpr int lines = kCutWords / 16;
    __builtin_prefetch(at(i / lines, k) + i % lines * 16, 0, 2);
  }
};

void run_tiles(const LinearArgs& a) {
  const auto panel = [&](int64_t row) {
    return static_cast<const int32_t*>(a.weight) + row / kPanel * a.weight_stride;
  };
  const bool one = a.rows <= kTileSide;
  if (a.rows <= kSquare)
    return for_groups<kPanels>(
        a, kSquare, kSquare, one ? 4 : 2, [&](const Group& group, int64_t, int64_t) {
          alignas(64) float sums[kSquare * kSquare];
          one ? sum_few<1>(a, group, sums) : sum_few<2>(a, group, sums);
          finish<bf16>(a, group, 0, a.rows, sums, group.panels > 2 ? kSumWidth<4> : kSumWidth<2>);
        });
  for_groups<kManyPanels>(a, many_rows(a), kSquare, kManyPanels,
                          [&](const GroupOf<kManyPanels>& group, int64_t first, int64_t rows) {
                            Panels panels{{}, group.panels * (kCutWords / 16)};
                            for (int p = 0; p < group.panels; ++p)
                              panels.of[p] = panel(group.row[p]);
                            sum_many<false>(a, group, first, rows, panels);
                          });
}
#endif

template <class Form>
void run_bytes(const LinearPackedArgs& a) {
  const LinearArgs& l = a.linear;
  const ByteRows<Form> all(a.workspace, l.inputs, l.rows);
  parallel_for(l.rows, std::max<int64_t>(1, 65536 / std::max<int64_t>(l.inputs, 1)),
               [&](int64_t row, int64_t end) {
                 for (; row < end; ++row) {
                   const ByteRows<Form> to = all.from(row);
                   const int64_t at = row * l.x_stride;
                   l.bf16 ? to_bytes<Form::kGroup, Form::kOffset>(
                                static_cast<const bf16*>(l.x) + at, l.inputs, to)
                          : to_bytes<Form::kGroup, Form::kOffset>(
                                static_cast<const float*>(l.x) + at, l.inputs, to);
                 }
               });
#if HEXAD_TILES
  if constexpr (std::is_same<Form, Int8>::value)
    if (l.rows >= kTileSide)
      return for_items<kByteRows, kTileSide>(
          l, kPanels, [&](const Group& group, int64_t first, int64_t rows, float* sums) {
            sum_many_bytes(a, group, first, rows, sums);
          });
#endif
  for_items(l, kPanels, [&](const Group& group, int64_t first, int64_t rows, float* sums) {
    sum_bytes<Form>(a, group, first, rows, sums);
  });
}

}  // namespace

namespace HEXAD_ISA {

void linear_packed(const LinearPackedArgs& a) {
  switch (a.form) {
    case kPackedInt8:
      return run_bytes<Int8>(a);
    case kPackedInt4:
      return run_bytes<Int4>(a);
    case kPackedBfloat:
#if HEXAD_TILES
      if (a.linear.bf16) return run_tiles(a.linear);
#elif HEXAD_PAIRS
      if (a.linear.bf16) return run<Pairs>(a.linear);
#endif
#if HEXAD_SHARES
      [[fallthrough]];
    default:
      return HEXAD_PLAIN::linear_packed(a);
#else
      return run<Halves>(a.linear);
    default:
      return run<Floats>(a.linear);
#endif
  }
}

}  // namespace HEXAD_ISA
}  // namespace hexad
