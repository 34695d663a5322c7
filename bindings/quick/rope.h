// (x, cos, sin, positions, interleaved); tables float32 or in x's dtype
#pragma once

#include "values.h"

namespace quick {

// Tables of half x's last dimension for at least as many positions as x (.., rows, dim) has rows.
inline void check_tables(Values& v, hexad_tensor* cos, hexad_tensor* sin, const hexad_tensor* x) {
  const int64_t rows = x->shape[2], dim = x->shape[3];
  if (!v.want(cos && sin && cos->ndim == 2 && sin->ndim == 2)) return;
  const bool wide = cos->dtype_code == 2 && cos->dtype_bits == 32;
  v.want(wide || v.same_dtype(cos, x));
  v.same_dtype(sin, cos);
  v.want(dim >= 2 && dim % 2 == 0 && cos->shape[1] == dim / 2 && cos->shape[0] >= rows);
  v.want(sin->shape[0] == cos->shape[0] && sin->shape[1] == cos->shape[1]);
}

inline PyObject* rope(Values& v) {
  hexad_tensor* x = v.given(0, 4, Layout::unit);
  hexad_tensor *cos = v.given(1, 2, Layout::unit), *sin = v.given(2, 2, Layout::unit);
  hexad_tensor* positions = v.tensor(3);
  const int32_t interleaved = v.code(4);
  if (!v.ok) return nullptr;
  check_tables(v, cos, sin, x);
  if (positions && v.int32(positions))
    v.want(positions->ndim == 1 && positions->shape[0] == x->shape[0]);
  Output y(v, x, 4, x->shape);
  const bool done =
      run(v, [&] { return hexad_rope(x, cos, sin, positions, y.get(), interleaved, nullptr); });
  return done ? y.release() : nullptr;
}

}  // namespace quick
