// act(x W^T + b) + residual: blocks of rows by columns, finished while their sums are at hand.
#include "op/linear.h"

#include "cpu/dot.h"
#include "cpu/math.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

HEXAD_INLINE vf activate(vf z, int activation) {
  switch (activation) {
    case 1:
      return max(zero(), z);
    case 2:
      return z * normal_cdf(z);
    case 3: {
      // (1 + tanh u) / 2 = sigmoid(2 u)
      const vf cube = fma(z * z, z * set1(0.044715f), z);
      return z * sigmoid(cube * set1(1.5957691216057308f));
    }
    case 4:
      return z * sigmoid(z);
    case 5:
      return tanh(z);
    case 6:
      return sigmoid(z);
    default:
      return z;
  }
}

template <class T>
void panel(const LinearArgs& a, int64_t row, int64_t row_end, int64_t begin, int64_t end) {
  const T* bias = static_cast<const T*>(a.bias);
  for (; row < row_end; row += kRows) {
    const int rows = int(std::min<int64_t>(kRows, row_end - row));
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    for (int64_t c = begin; c < end; c += kColumns) {
      const int columns = int(std::min<int64_t>(kColumns, end - c));
      const T* w = static_cast<const T*>(a.weight) + c * a.weight_stride;
      float sums[kRows * kColumns];
      dots(x, a.x_stride, rows, w, a.weight_stride, columns, a.inputs, Product{}, sums);
      const vf b = bias ? load_part(bias + c, columns) : zero();
      for (int r = 0; r < rows; ++r) {
        vf z = activate(load(sums + r * kColumns) + b, a.activation);
        if (a.residual) {
          const int64_t at = (row + r) * a.residual_stride + c;
          z = z + load_part(static_cast<const T*>(a.residual) + at, columns);
        }
        T* y = static_cast<T*>(a.y) + (row + r) * a.y_stride + c;
        columns == kLanes ? store(y, z) : store_first(y, z, columns);
      }
    }
  }
}

}  // namespace

namespace HEXAD_ISA {

void linear(const LinearArgs& a) {
  static_assert(kColumns == kLanes, "one vector finishes a row of a block");
  // A panel's weights stay in the second-level cache (about 384 KB) while its rows pass by.
  const int64_t most = 98304 / std::max<int64_t>(a.inputs, 1) / kColumns * kColumns;
  const int64_t columns = std::min<int64_t>(128, std::max<int64_t>(kColumns, most));
  const int64_t rows = 32 * kRows;
  const int64_t down = (a.rows + rows - 1) / rows, across = (a.outputs + columns - 1) / columns;
  const int64_t cost = std::min(a.rows, rows) * columns * std::max<int64_t>(a.inputs, 1);
  parallel_for(down * across, std::max<int64_t>(1, 131072 / std::max<int64_t>(cost, 1)),
               [&](int64_t item, int64_t end) {
                 for (; item < end; ++item) {
                   const int64_t row = item % down * rows, column = item / down * columns;
                   const int64_t row_end = std::min(a.rows, row + rows);
                   const int64_t column_end = std::min(a.outputs, column + columns);
                   a.bf16 ? panel<bf16>(a, row, row_end, column, column_end)
                          : panel<float>(a, row, row_end, column, column_end);
                 }
               });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
