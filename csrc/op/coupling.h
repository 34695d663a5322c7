#pragma once

#include <cstdint>

namespace hexad {

struct CouplingArgs {
  const void* x;
  const void* shift;
  const void* log_scale;  // null: additive
  void* y;
  float* log_det;
  bool bf16;
  int64_t batch, row;                                      // row = channels * spatial, contiguous
  int64_t x_stride, y_stride, shift_stride, scale_stride;  // from one batch row to the next
  int64_t active_begin, active;                            // channel split
  bool checkerboard, flip;
  int64_t height, width;
  bool inverse;
  int scale_map;
  float clamp;
};

}  // namespace hexad
