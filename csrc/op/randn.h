#pragma once

#include <cstdint>

namespace hexad {

struct RandnArgs {
  const int64_t* seeds;
  float* out;
  int64_t batch, row;  // row: its elements, contiguous
  int64_t offset;
};

}  // namespace hexad
