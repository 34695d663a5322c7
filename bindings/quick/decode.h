// (q, k_cache, v_cache, lengths, block_table, left, softcap, scale, k_scale, v_scale, alibi_slopes,
// sinks)
#pragma once

#include "attention.h"

namespace quick {

// A cache and what addresses it; `like` has a float cache's dtype.
struct Cache {
  hexad_tensor *k, *value, *lengths, *table, *k_scale, *v_scale;

  Cache(Values& v, int cache_at, int lengths_at, int scale_at, const hexad_tensor* like) {
    k = v.given(cache_at, 4, Layout::unit), value = v.given(cache_at + 1, 4, Layout::unit);
    lengths = v.given(lengths_at, 1), table = v.tensor(lengths_at + 1);
    k_scale = v.tensor(scale_at), v_scale = v.tensor(scale_at + 1);
    if (!v.want(like && like->ndim > 0)) return;
    const bool int8 = k->dtype_code == 0 && k->dtype_bits == 8;
    v.want(int8 == (k_scale != nullptr) && int8 == (v_scale != nullptr));
    v.same_dtype(value, k);
    if (!int8) v.same_dtype(k, like);
    for (int d = 0; d < 3; ++d) v.want(k->shape[d] == value->shape[d]);
    for (const hexad_tensor* t : {k_scale, v_scale}) {
      if (!t || !v.float32(t) || !v.want(t->ndim == 3)) continue;
      for (int d = 0; d < 3; ++d) v.want(t->shape[d] == k->shape[d]);
    }
    v.int32(lengths);
    v.want(lengths->shape[0] == like->shape[0]);
    if (table && v.int32(table))
      v.want(table->ndim == 2 && table->shape[0] == like->shape[0]);
    else
      v.want(k->shape[0] == like->shape[0]);
  }
};

inline PyObject* decode(Values& v) {
  hexad_tensor* q = v.given(0, 3, Layout::unit);
  const int64_t left = v.integer(5);
  if (!v.ok) return nullptr;
  Cache cache(v, 1, 3, 8, q);
  if (!v.ok) return nullptr;
  const int64_t heads = q->shape[1], dim = q->shape[2], kv_heads = cache.k->shape[1];
  v.want(cache.k->shape[3] == dim && dim > 0 && kv_heads > 0 && heads % kv_heads == 0);
  Scores scores(v, 6, 7, 10, 11, heads, dim);
  const int64_t shape[3] = {q->shape[0], heads, cache.value->shape[3]};
  Output out(v, q, 3, shape);
  Statistics lse(v, {q->shape[0], heads});
  const bool done = run(v, [&] {
    return hexad_decode(q, cache.k, cache.value, cache.lengths, cache.table, cache.k_scale,
                        cache.v_scale, scores.slopes, scores.sinks, out.get(), lse.get(), nullptr,
                        left, scores.softcap, scores.scale, nullptr);
  });
  return done ? pair(out, lse) : nullptr;
}

}  // namespace quick
