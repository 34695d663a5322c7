// For the doors whose kernels see a tensor as one run of elements.
#pragma once

#include "check.h"

namespace hexad {

inline void require_contiguous(const hexad_tensor& t, const char* name) {
  int64_t want = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    HEXAD_REQUIRE(t.shape[i] <= 1 || stride(t, i) == want || numel(t) == 0,
                  "%s: dimension %d has stride %lld, wants %lld (contiguous)", name, i,
                  (long long)stride(t, i), (long long)want);
    want *= t.shape[i];
  }
}

}  // namespace hexad
