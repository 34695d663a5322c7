#pragma once

#include <cstdint>

namespace hexad {

struct RooflineArgs {
  int kind;             // 0 fp32 fma, 1 bf16 dot, 2 read, 3 copy
  const float* source;  // read and copy
  float* target;        // copy
  int64_t count;        // elements, or rounds of arithmetic
  float* sink;          // (threads) keeps the arithmetic alive
  int threads;
  double* flops;  // out: operations done
};

}  // namespace hexad
