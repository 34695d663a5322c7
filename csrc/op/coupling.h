#pragma once

#include <cstdint>

namespace hexad {

// How a row of x is split and what becomes of its active half.
struct CouplingMap {
  int64_t batch, row;            // row = channels * spatial, contiguous
  int64_t active_begin, active;  // channel split
  bool checkerboard, flip;
  int64_t height, width;
  bool inverse;
  int scale_map;
  float clamp;
  bool bf16;
};

struct CouplingArgs : CouplingMap {
  const void* x;
  const void* shift;
  const void* log_scale;  // null: additive
  void* y;
  float* log_det;
  int64_t x_stride, y_stride, shift_stride, scale_stride;  // from one batch row to the next
};

struct CouplingBackwardArgs : CouplingMap {
  const void* grad_y;         // null: 0, like grad_log_det
  const float* grad_log_det;  // contiguous
  const void* value;          // y, or x where `from_input`
  const void* shift;
  const void* log_scale;  // null: additive
  void* grad_x;           // contiguous; null where not wanted, like the other two
  void* grad_shift;
  void* grad_scale;
  int64_t grad_y_stride, value_stride, shift_stride, scale_stride;
  bool from_input;
};

}  // namespace hexad
