// (x, weight, bias, activation, residual)
#pragma once

#include "values.h"

namespace quick {

// The output of a product with `rows` rows of weights: x's leading sizes, then the columns that an
// activation leaves. Checks the residual, argument `residual_at`.
struct Product {
  int64_t shape[Values::kDims] = {};
  hexad_tensor* residual = nullptr;

  Product(Values& v, const hexad_tensor* x, int64_t rows, int64_t activation, int residual_at) {
    if (!v.ok) return;
    const bool gate = activation >= 7;
    for (int d = 0; d + 1 < x->ndim; ++d) shape[d] = x->shape[d];
    shape[x->ndim - 1] = gate ? rows / 2 : rows;
    v.want(!gate || rows % 2 == 0);
    residual = v.tensor(residual_at);
    if (!residual || !v.same_dtype(residual, x) || !v.want(residual->ndim == x->ndim)) return;
    for (int d = 0; d < x->ndim; ++d) v.want(residual->shape[d] == shape[d]);
  }
};

inline PyObject* linear(Values& v) {
  hexad_tensor *x = v.given_from(0, 1), *weight = v.given(1, 2, Layout::unit);
  const int32_t activation = v.code(3);
  if (!v.want(x && weight && v.same_dtype(weight, x) && weight->shape[1] == x->shape[x->ndim - 1]))
    return nullptr;
  hexad_tensor* bias = v.like(2, x, {weight->shape[0]});
  Product product(v, x, weight->shape[0], activation, 4);
  Output y(v, x, x->ndim, product.shape);
  const bool done = run(v, [&] {
    return hexad_linear(x, weight, bias, product.residual, y.get(), activation, nullptr);
  });
  return done ? y.release() : nullptr;
}

}  // namespace quick
