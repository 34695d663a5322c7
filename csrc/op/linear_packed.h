#pragma once

#include "op/linear.h"

namespace hexad {

// How a packed weight's panels hold it; kernels/hexad_kernels/pack.py says the layouts.
enum PackedForm { kPackedFloat, kPackedBfloat, kPackedInt8, kPackedInt4 };

struct LinearPackedArgs {
  LinearArgs linear;  // weight: the panels, weight_stride words from one to the next
  int form;
  int32_t* workspace;  // int8, int4: workspace_words() for each row
};

namespace {

// Words of 4 bytes in a panel of 16 outputs.
constexpr int64_t panel_words(int form, int64_t inputs) {
  return form == kPackedFloat    ? 16 * inputs
         : form == kPackedBfloat ? 16 * ((inputs + 1) / 2)
         : form == kPackedInt8   ? 16 + 16 * ((inputs + 3) / 4)
                                 : 80 * ((inputs + 31) / 32);
}

// Inputs that share a scale when a row of x is rounded to 8 bits.
constexpr int64_t input_group(int form) {
  return form == kPackedInt8 ? 64 : 32;
}

// A row of x in 8 bits: three words per group, then its inputs, 2 to a word at most.
constexpr int64_t workspace_words(int form, int64_t inputs) {
  const int64_t group = input_group(form);
  return form < kPackedInt8 ? 0 : (inputs + group - 1) / group * (3 + group / 2);
}

}  // namespace
}  // namespace hexad
