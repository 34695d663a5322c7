// (x, weight, bias), float32
#pragma once

#include "values.h"

namespace quick {

inline PyObject* invconv(Values& v) {
  hexad_tensor* x = v.given_from(0, 2);
  if (!v.ok || !v.float32(x)) return nullptr;
  const int64_t channels = x->shape[1];
  hexad_tensor *weight = v.like(1, x, {channels, channels}), *bias = v.like(2, x, {channels});
  if (!v.want(weight)) return nullptr;
  Output y(v, x, x->ndim, x->shape);
  return run(v, [&] { return hexad_invconv(x, weight, bias, y.get(), nullptr); }) ? y.release()
                                                                                  : nullptr;
}

}  // namespace quick
