// (x, shift, log_scale, inverse, split, flip, scale_map, clamp)
#pragma once

#include "values.h"

namespace quick {

inline PyObject* coupling(Values& v) {
  hexad_tensor* x = v.given_from(0, 2, Layout::rows);
  hexad_tensor *shift = v.tensor(1, Layout::rows), *log_scale = v.tensor(2, Layout::rows);
  const int32_t inverse = v.code(3), split = v.code(4), flip = v.code(5), map = v.code(6);
  const double clamp = v.real(7);
  if (!v.want(x && shift && (map != 1 || clamp > 0))) return nullptr;
  v.want(split == 0 || x->ndim == 2 || x->ndim == 4);
  const int64_t half = x->shape[1] / 2, active = split  ? x->shape[1]
                                                 : flip ? x->shape[1] - half
                                                        : half;
  for (const hexad_tensor* t : {shift, log_scale}) {
    if (!t) continue;
    if (!v.same_dtype(t, x) || !v.want(t->ndim == x->ndim)) return nullptr;
    for (int d = 0; d < x->ndim; ++d) v.want(t->shape[d] == (d == 1 ? active : x->shape[d]));
  }
  Output y(v, x, x->ndim, x->shape);
  Statistics log_det(v, {x->shape[0]});
  const bool done = run(v, [&] {
    return hexad_coupling(x, shift, log_scale, y.get(), log_det.get(), nullptr, nullptr, inverse,
                          split, flip, map, float(clamp), nullptr);
  });
  return done ? pair(y, log_det) : nullptr;
}

}  // namespace quick
