#pragma once

#include <cstdint>

namespace hexad {

struct VqArgs {
  const void* x;
  const void* codebook;
  void* quantized;
  int64_t* index;  // -1 - entry where the distance to an entry is NaN
  bool bf16;
  int64_t rows, features, entries;
  int64_t x_stride, codebook_stride, quantized_stride;
};

}  // namespace hexad
