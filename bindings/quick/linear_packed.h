// (x, panels, bias, activation, residual, form, rows)
#pragma once

#include "linear.h"

namespace quick {

// int32, (rows, words); none without words.
class Workspace : public Output {
 public:
  Workspace(Values& v, int64_t rows, int64_t words) {
    const int64_t shape[2] = {rows, words};
    if (words) make(v, 0, 32, 2, shape);
  }
};

inline PyObject* linear_packed(Values& v) {
  hexad_tensor *x = v.given_from(0, 1), *panels = v.given(1, 2);
  const int32_t activation = v.code(3), form = v.code(5);
  const int64_t rows = v.integer(6);
  if (!v.want(x && panels && rows >= 0 && form >= 0 && form <= 3)) return nullptr;
  const int64_t inputs = x->shape[x->ndim - 1];
  hexad_tensor* bias = v.like(2, x, {rows});
  Product product(v, x, rows, activation, 4);
  int64_t count = 1;
  for (int d = 0; d + 1 < x->ndim; ++d) count *= x->shape[d];
  const int64_t group = form == 2 ? 64 : 32;
  const int64_t words = form < 2 ? 0 : (inputs + group - 1) / group * (3 + group / 2);
  Output y(v, x, x->ndim, product.shape);
  Workspace workspace(v, count, words);
  const bool done = run(v, [&] {
    return hexad_linear_packed(x, panels, bias, product.residual, y.get(), workspace.get(),
                               activation, form, nullptr);
  });
  return done ? y.release() : nullptr;
}

}  // namespace quick
