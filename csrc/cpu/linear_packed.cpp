// act(x W^T + b) + residual with W in panels of 16 outputs, read once for up to eight rows.
#include "op/linear_packed.h"

#include "cpu/linear_amx.h"
#include "cpu/linear_bytes.h"
#include "cpu/linear_items.h"
#include "cpu/linear_tile.h"

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

template <class Kind>
void run(const LinearArgs& a) {
  if (!a.rows) return;
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
void run_tiles(const LinearArgs& a) {
  if (a.rows <= kFewRows) {
    const bool one = a.rows <= kTileSide;
    return for_groups<kPanels>(a, kFewRows, kFewRows, one ? 4 : 2,
                               [&](const Group& group, int64_t, int64_t) {
                                 alignas(64) float sums[kSquare * kSquare];
                                 one ? sum_few<1>(a, group, sums) : sum_few<2>(a, group, sums);
                                 finish<bf16>(a, group, 0, a.rows, sums, one ? 64 : 32);
                               });
  }
  for_groups<kManyPanels>(
      a, kManyRows, kSquare, kManyPanels,
      [&](const GroupOf<kManyPanels>& group, int64_t first, int64_t rows) {
        const auto at = [&](int p, int64_t k) {
          return static_cast<const int32_t*>(a.weight) + group.row[p] / kPanel * a.weight_stride +
                 k / 2 * kPanel;
        };
        sum_many<false>(
            a, group, first, rows,
            [&](int64_t k, int64_t, const int32_t** w) {
              for (int p = 0; p < group.panels; ++p) w[p] = at(p, k);
            },
            // A share of what comes next, 1 KB to a row.
            [&](const Next& next) {
              const int begin = 32 * next.unit / next.units,
                        end = 32 * (next.unit + 1) / next.units;
              return Ahead{reinterpret_cast<const char*>(at(next.panel[begin / 16], next.k)) +
                               begin % 16 * 1024,
                           1024, end - begin};
            });
      });
}
#endif

template <class Form>
void run_bytes(const LinearPackedArgs& a) {
  const LinearArgs& l = a.linear;
  const int64_t groups = (l.inputs + Form::kGroup - 1) / Form::kGroup;
  const int64_t words = workspace_words(a.form, l.inputs);
  parallel_for(l.rows, std::max<int64_t>(1, 65536 / std::max<int64_t>(l.inputs, 1)),
               [&](int64_t row, int64_t end) {
                 for (; row < end; ++row) {
                   int32_t* to = a.workspace + row * words;
                   const int64_t at = row * l.x_stride;
                   l.bf16 ? to_bytes<Form::kGroup, Form::kOffset>(
                                static_cast<const bf16*>(l.x) + at, l.inputs, groups, to)
                          : to_bytes<Form::kGroup, Form::kOffset>(
                                static_cast<const float*>(l.x) + at, l.inputs, groups, to);
                 }
               });
  for_items(l, kPanels, [&](const Group& group, int64_t first, int64_t rows, float* sums) {
    sum_bytes<Form>(a, group, first, rows, sums);
  });
}

}  // namespace

namespace HEXAD_ISA {

void linear_packed(const LinearPackedArgs& a) {
  switch (a.form) {
    case kPackedFloat:
      return run<Floats>(a.linear);
    case kPackedBfloat:
#if HEXAD_TILES
      if (a.linear.bf16) return run_tiles(a.linear);
#elif HEXAD_PAIRS
      if (a.linear.bf16) return run<Pairs>(a.linear);
#endif
      return run<Halves>(a.linear);
    case kPackedInt8:
      return run_bytes<Int8>(a);
    default:
      return run_bytes<Int4>(a);
  }
}

}  // namespace HEXAD_ISA
}  // namespace hexad
