#pragma once

#include <cstdint>

#include "anywhere.h"

namespace hexad {

constexpr int64_t kSampleScratch = 4096;  // tokens: longer rows need a workspace

enum SampleStatus : int64_t { kSampleNaN = -1, kSampleNothing = -2, kSampleParameter = -3 };

// A parameter of each row: values[b], or one for all.
template <class T>
struct PerRow {
  const T* values;
  T all;
  HEXAD_ANYWHERE T operator[](int64_t b) const { return values ? values[b] : all; }
};

struct SampleArgs {
  const void* logits;
  bool bf16, f16;
  int64_t batch, vocabulary, logits_stride;
  const int64_t* seeds;  // null: every temperature is 0
  PerRow<int64_t> position, top_k;
  PerRow<float> temperature, top_p, min_p;
  int64_t* out;        // a token, or a SampleStatus: on CUDA, where nothing can raise, for good
  int32_t* workspace;  // (slots, 4 vocabulary); null: not needed
  int64_t slots;
};

}  // namespace hexad
