// (x, weight, bias, kind, eps, num_groups, scale, shift, activation); layer and RMS norm only.
#pragma once

#include "values.h"

namespace quick {

inline PyObject* norm(Values& v) {
  hexad_tensor* x = v.given_from(0, 1);
  const int32_t kind = v.code(3), activation = v.code(8);
  const double eps = v.real(4);
  if (!v.want(kind < 2 && v.integer(5) == 0 && eps >= 0)) return nullptr;
  const int64_t features = x->shape[x->ndim - 1];
  hexad_tensor *weight = v.like(1, x, {features}), *bias = v.like(2, x, {features});
  hexad_tensor *scale = v.like(6, x, {x->shape[0], features}),
               *shift = v.like(7, x, {x->shape[0], features});
  if (!v.want(x->ndim > 1 || (!scale && !shift))) return nullptr;
  Output y(v, x, x->ndim, x->shape);
  const bool done = run(v, [&] {
    return hexad_norm(x, weight, bias, scale, shift, y.get(), kind, eps, 0, activation, nullptr);
  });
  return done ? y.release() : nullptr;
}

}  // namespace quick
