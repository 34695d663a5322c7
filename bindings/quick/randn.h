// (seeds, shape, offset)
#pragma once

#include "values.h"

namespace quick {

inline PyObject* randn(Values& v) {
  hexad_tensor* seeds = v.given(0, 1);
  int64_t shape[Values::kDims] = {};
  const int ndim = 1 + v.sizes(1, shape + 1, Values::kDims - 1);
  const int64_t offset = v.integer(2);
  if (!v.want(seeds && offset >= 0) || !v.dtype(seeds, 0, 64)) return nullptr;
  shape[0] = seeds->shape[0];
  Output out(v, 2, 32, ndim, shape);
  const bool done = run(v, [&] { return hexad_randn(seeds, out.get(), offset, nullptr); });
  return done ? out.release() : nullptr;
}

}  // namespace quick
