#pragma once

#include "op/coupling.h"

namespace hexad {

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
