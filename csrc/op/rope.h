#pragma once

#include <cstdint>

namespace hexad {

struct RopeArgs {
  const void* x;
  void* y;
  const void *cos, *sin;     // float32
  const int32_t* positions;  // of each sequence's first row; null: 0
  bool bf16, f16, interleaved;
  bool tables_bf16;  // cos and sin are, on the CPU
  int64_t batch, heads, rows, head_dim;
  int64_t x_stride[3], y_stride[3];  // sequence, head, row
  int64_t cos_stride, sin_stride, positions_stride;
};

}  // namespace hexad
