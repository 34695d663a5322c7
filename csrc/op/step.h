#pragma once

#include <cstdint>

namespace hexad {

struct StepArgs {
  const float* row;          // this step's [A B c g 0 0 0 0] and C, 4 x 8
  const float* x;            // all tensors: `size` contiguous elements
  const void* model_output;  // float or bf16
  const void* uncond;        // null: no guidance
  const float* history[3];   // null where absent, as are last and noise
  const float* last;
  const float* noise;
  float* out[3];
  int outputs;  // 1 to 3
  bool bf16;
  int64_t size;
};

}  // namespace hexad
