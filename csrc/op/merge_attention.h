#pragma once

#include <cstdint>

namespace hexad {

struct MergeAttentionArgs {
  const void *out_a, *out_b;
  const float *lse_a, *lse_b;
  void* out;
  float* lse;
  bool bf16;
  int64_t rows, value_dim;
  int64_t a_stride, b_stride, out_stride;  // from row to row; lse is contiguous
};

}  // namespace hexad
