// (k, v, k_cache, v_cache, lengths, block_table, cos, sin, interleaved, k_scale, v_scale)
#pragma once

#include "decode.h"
#include "rope.h"

namespace quick {

// No two entries are one in memory.
inline bool own_memory(const hexad_tensor* t) {
  for (int d = 0; t && t->strides && d < t->ndim; ++d)
    if (t->shape[d] > 1 && t->strides[d] == 0) return false;
  return true;
}

inline PyObject* append_kv(Values& v) {
  hexad_tensor *k = v.given(0, 4, Layout::unit), *value = v.given(1, 4, Layout::unit);
  hexad_tensor *cos = v.tensor(6, Layout::unit), *sin = v.tensor(7, Layout::unit);
  const int32_t interleaved = v.code(8);
  if (!v.ok || !v.same_dtype(value, k)) return nullptr;
  Cache cache(v, 2, 4, 9, k);
  if (!v.ok) return nullptr;
  for (int d = 0; d < 3; ++d) v.want(value->shape[d] == k->shape[d]);
  v.want(cache.k->shape[1] == k->shape[1] && cache.k->shape[3] == k->shape[3] &&
         cache.value->shape[3] == value->shape[3]);
  for (const hexad_tensor* t : {cache.k, cache.value, cache.k_scale, cache.v_scale})
    v.want(own_memory(t));
  if (cos || sin) check_tables(v, cos, sin, k);
  const bool done = run(v, [&] {
    return hexad_append_kv(k, value, cache.k, cache.value, cache.lengths, cache.table, cos, sin,
                           cache.k_scale, cache.v_scale, interleaved, nullptr);
  });
  return done ? PyTuple_New(0) : nullptr;
}

}  // namespace quick
