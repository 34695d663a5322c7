// (x, weight, bias, kind, eps, num_groups, scale, shift, activation)
#pragma once

#include "values.h"

namespace quick {

inline PyObject* norm(Values& v) {
  hexad_tensor* x = v.given_from(0, 1);
  const int32_t kind = v.code(3), activation = v.code(8);
  const double eps = v.real(4);
  const int64_t groups = v.integer(5);
  const bool group = kind == 2;
  if (!v.want(x && eps >= 0 && x->ndim > group && (group ? groups > 0 : groups == 0)))
    return nullptr;
  const int64_t features = x->shape[group ? 1 : x->ndim - 1];
  v.want(!group || features % groups == 0);
  hexad_tensor *weight = v.like(1, x, {features}), *bias = v.like(2, x, {features});
  hexad_tensor *scale = v.like(6, x, {x->shape[0], features}),
               *shift = v.like(7, x, {x->shape[0], features});
  if (!v.want(x->ndim > 1 || (!scale && !shift))) return nullptr;
  Output y(v, x, x->ndim, x->shape);
  const bool done = run(v, [&] {
    return hexad_norm(x, weight, bias, scale, shift, y.get(), kind, eps, groups, activation,
                      nullptr);
  });
  return done ? y.release() : nullptr;
}

}  // namespace quick
