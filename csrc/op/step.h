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
  // Noise made in the kernel, in place of `noise`: element e of row b is that of
  // randn(seeds[b], offset = index + 1). null: none.
  const int64_t* seeds = nullptr;
  int64_t row_size = 0;  // elements that a seed serves
  int64_t index = 0;
  // The index on the device (CUDA only): int32 or int64, null where `row` and `index` hold. An
  // index outside the table counts as the row nearest to it.
  const float* table = nullptr;
  const void* place = nullptr;
  bool place64 = false;
  int64_t steps = 0;
};

}  // namespace hexad
