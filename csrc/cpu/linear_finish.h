// What linear does with a finished sum: bias, activation or gate, residual, one rounding.
#pragma once

#include "cpu/math.h"
#include "op/linear.h"

namespace hexad {
namespace {

constexpr int kPanel = 16;                // outputs of a panel, one to a lane
constexpr int kPanels = 4;                // the most panels of an item of work
constexpr int kWidth = kPanel * kPanels;  // floats from one row of an item's sums to the next
constexpr int kItemRows = 264;            // the most rows of an item
static_assert(kPanel == kLanes, "one vector finishes a panel's row");

// The panels that one item of work sums: the weight's row in lane 0 of each, and how many of its
// lanes exist. A gated item holds gates in the first half of its panels, their ups in the second.
template <int N>
struct GroupOf {
  int panels;
  int64_t row[N];
  int lanes[N];
};
using Group = GroupOf<kPanels>;

HEXAD_INLINE vf activate(vf z, int activation) {
  switch (activation) {
    case 1:
      return max(zero(), z);
    case 2:
    case 8:
      return z * normal_cdf(z);
    case 3: {
      // (1 + tanh u) / 2 = sigmoid(2 u)
      const vf cube = fma(z * z, z * set1(0.044715f), z);
      return z * sigmoid(cube * set1(1.5957691216057308f));
    }
    case 4:
    case 7:
      return z * sigmoid(z);
    case 5:
      return tanh(z);
    case 6:
      return sigmoid(z);
    default:
      return z;
  }
}

HEXAD_INLINE bool gated(const LinearArgs& a) {
  return a.activation >= 7;
}

template <class T, int N>
void finish(const LinearArgs& a, const GroupOf<N>& group, int64_t first, int64_t rows,
            const float* sums, int64_t width = kWidth) {
  const T* bias = static_cast<const T*>(a.bias);
  const int outputs = gated(a) ? group.panels / 2 : group.panels;
  for (int p = 0; p < outputs; ++p) {
    const int lanes = group.lanes[p];
    const int64_t at = group.row[p];
    const vf b = bias ? load_part(bias + at, lanes) : zero();
    const vf up = bias && gated(a) ? load_part(bias + group.row[outputs + p], lanes) : zero();
    for (int64_t r = 0; r < rows; ++r) {
      const float* sum = sums + r * width + p * kPanel;
      vf z = activate(load(sum) + b, a.activation);
      if (gated(a)) z = z * (load(sum + outputs * kPanel) + up);
      if (a.residual) {
        const int64_t from = (first + r) * a.residual_stride + at;
        z = z + load_part(static_cast<const T*>(a.residual) + from, lanes);
      }
      T* y = static_cast<T*>(a.y) + (first + r) * a.y_stride + at;
      lanes == kLanes ? store(y, z) : store_first(y, z, lanes);
    }
  }
}

}  // namespace
}  // namespace hexad
