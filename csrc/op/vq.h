#pragma once

#include <cstdint>

namespace hexad {

constexpr int64_t kVqFew = 24;     // rows: no workspace, all distances as they stand
constexpr int64_t kVqPart = 1024;  // the most entries that are held in panels at once

// How many are: few enough to stay in the second-level cache. A multiple of 64.
inline int64_t vq_part(int64_t features) {
  const int64_t fit = features > 0 ? 131072 / features / 64 * 64 : kVqPart;
  return fit < 64 ? 64 : fit < kVqPart ? fit : kVqPart;
}

// Floats of workspace for a thread: the panels, and six rows of x.
inline int64_t vq_workspace(int64_t features) {
  return (vq_part(features) + 6) * features;
}

struct VqArgs {
  const void* x;
  const void* codebook;
  void* quantized;
  float* workspace;
  int64_t* index;  // -1 - entry where the distance to an entry is NaN
  bool bf16;
  int64_t rows, features, entries;
  int64_t x_stride, codebook_stride, quantized_stride;
};

}  // namespace hexad
