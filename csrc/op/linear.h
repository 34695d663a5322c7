#pragma once

#include <cstdint>

namespace hexad {

struct LinearArgs {
  const void* x;
  const void* weight;
  const void* bias;      // null: none
  const void* residual;  // null: none
  void* y;
  bool bf16;
  int64_t rows, inputs, outputs;                               // outputs: the weight's rows
  int64_t x_stride, weight_stride, residual_stride, y_stride;  // from one row to the next
  int activation;  // 7, 8: SiLU and GELU gates, y = act(first half of the outputs) * second half
  bool f16;        // CUDA only
};

}  // namespace hexad
