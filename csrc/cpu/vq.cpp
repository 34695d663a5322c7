// Nearest codebook entry: a few rows at a time against the whole codebook, keeping the best so far.
#include "op/vq.h"

#include "cpu/dot.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

template <class T>
void nearest(const VqArgs& a, int64_t row, int64_t end) {
  const float inf = __builtin_inff();
  for (; row < end; row += kRows) {
    const int rows = int(std::min<int64_t>(kRows, end - row));
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    float best[kRows];
    int64_t* index = a.index + row;
    for (int r = 0; r < rows; ++r) {
      best[r] = inf;
      index[r] = 0;
    }
    for (int64_t e = 0; e < a.entries; e += kColumns) {
      const int columns = int(std::min<int64_t>(kColumns, a.entries - e));
      const T* entry = static_cast<const T*>(a.codebook) + e * a.codebook_stride;
      float distance[kRows * kColumns];
      dots(x, a.x_stride, rows, entry, a.codebook_stride, columns, a.features, SquaredDifference{},
           distance);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
          const float d = distance[r * kColumns + c];
          if (d < best[r]) {
            best[r] = d;
            index[r] = e + c;
          } else if (d != d && index[r] >= 0) {
            best[r] = -inf;
            index[r] = -1 - (e + c);
          }
        }
    }
    for (int r = 0; r < rows; ++r) {
      if (index[r] < 0) continue;
      const T* entry = static_cast<const T*>(a.codebook) + index[r] * a.codebook_stride;
      std::copy(entry, entry + a.features,
                static_cast<T*>(a.quantized) + (row + r) * a.quantized_stride);
    }
  }
}

}  // namespace

namespace HEXAD_ISA {

void vq(const VqArgs& a) {
  const int64_t cost = std::min<int64_t>(a.entries, 4096) * std::max<int64_t>(a.features, 16);
  const int64_t blocks = std::max<int64_t>(1, 65536 / std::max<int64_t>(cost * kRows, 1));
  parallel_for(a.rows, blocks * kRows, [&](int64_t begin, int64_t end) {
    a.bf16 ? nearest<bf16>(a, begin, end) : nearest<float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
