#pragma once

#include <cstdint>

namespace hexad {

// A thread of the kernel takes this many pixels at once.
constexpr int kMaskedConvBlock = 64;
constexpr int kMaskedConvGroup = 4;  // panels of weights at once, where pixels are few

// Floats of workspace: the weights in panels of 16 outputs, and each thread's block of inputs.
inline int64_t maskedconv_workspace(int64_t inputs, int64_t outputs, int64_t taps, int threads) {
  const int64_t size = inputs * taps;
  return (outputs + 15) / 16 * 16 * size + threads * (kMaskedConvBlock * size + 16);
}

struct MaskedConvArgs {
  const void* x;
  const void* weight;  // contiguous
  const void* bias;    // null: none
  void* y;             // contiguous
  float* workspace;
  bool bf16;
  int64_t batch, inputs, outputs, height, width, kernel_height, kernel_width;
  int64_t x_stride[4];
  int64_t taps;  // the mask: so many of the kernel, in raster order
  int64_t row_begin, row_end, col_begin, col_end;  // the pixels asked for
};

}  // namespace hexad
