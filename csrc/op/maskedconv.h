#pragma once

#include <cstdint>

namespace hexad {

// A thread of the kernel holds this many pixels' inputs in its part of the workspace.
constexpr int kMaskedConvPixels = 6;

struct MaskedConvArgs {
  const void* x;
  const void* weight;  // contiguous
  const void* bias;    // null: none
  void* y;             // contiguous
  float* workspace;
  int64_t workspace_stride;  // from one thread's part to the next
  bool bf16;
  int64_t batch, inputs, outputs, height, width, kernel_height, kernel_width;
  int64_t x_stride[4];
  int64_t taps;  // the mask: so many of the kernel, in raster order
  int64_t row_begin, row_end, col_begin, col_end;  // the pixels asked for
};

}  // namespace hexad
