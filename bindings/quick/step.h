// (table, index, x, model_output, uncond, h1, h2, h3, last, noise, outputs, place, seeds)
#pragma once

#include "values.h"

namespace quick {

inline PyObject* step(Values& v) {
  hexad_tensor *table = v.given(0, 3), *x = v.given_from(2, 0), *output = v.given_from(3, 0);
  const int64_t index = v.integer(1), count = v.integer(10);
  if (!v.ok || !v.float32(x) || !v.float32(table)) return nullptr;
  v.want(table->shape[1] == 4 && table->shape[2] == 8 && v.none(11) && v.none(12));
  v.want(index >= 0 && index < table->shape[0] && count >= 1 && count <= 3);
  hexad_tensor* in[] = {output,      v.tensor(4), v.tensor(5), v.tensor(6),
                        v.tensor(7), v.tensor(8), v.tensor(9)};
  for (int i = 0; i < 7; ++i) {
    if (!in[i]) continue;
    if (i == 1) v.same_dtype(in[i], output);
    if (i > 1) v.float32(in[i]);
    if (!v.want(in[i]->ndim == x->ndim)) return nullptr;
    for (int d = 0; d < x->ndim; ++d) v.want(in[i]->shape[d] == x->shape[d]);
  }
  Output out[3];
  for (int k = 0; k < 3 && v.ok && k < count; ++k) out[k].make(v, 2, 32, x->ndim, x->shape);
  const bool done = run(v, [&] {
    return hexad_step(table, x, output, in[1], in[2], in[3], in[4], in[5], in[6], out[0].get(),
                      out[1].get(), out[2].get(), nullptr, nullptr, index, nullptr);
  });
  PyObject* all = done ? PyTuple_New(count) : nullptr;
  for (int k = 0; all && k < count; ++k) {
    PyObject* one = out[k].release();
    if (!one)
      Py_CLEAR(all);
    else
      PyTuple_SET_ITEM(all, k, one);
  }
  return all;
}

}  // namespace quick
