#pragma once

#include <cstdint>

namespace hexad {

struct NormArgs {
  const void* x;
  const void* weight;  // these four: null for none
  const void* bias;
  const void* scale;
  const void* shift;
  void* y;
  bool bf16, rms, silu;
  int64_t rows, row;           // each row is normalised by itself
  int64_t x_stride, y_stride;  // from one row to the next
  int64_t spatial;             // elements of a row that share a feature
  int64_t features;            // of weight; rows take their part of them in turn
  int64_t rows_per_batch;      // rows that share a row of scale and shift
  int64_t scale_stride, shift_stride;
  double eps;
};

}  // namespace hexad
