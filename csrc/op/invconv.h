#pragma once

#include <cstdint>

namespace hexad {

constexpr int64_t kInvconvChannels = 1024;  // at most: a panel of x stands on the stack

struct InvconvArgs {
  const void* x;  // (batch, channels, pixels), contiguous like y
  const float* weight;
  const float* bias;  // null: 0
  void* y;
  bool bf16;
  int64_t batch, channels, pixels;
};

}  // namespace hexad
