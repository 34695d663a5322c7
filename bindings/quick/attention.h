// (q, k, v, mask, causal, left, right, softcap, scale, alibi_slopes, sinks)
#pragma once

#include "values.h"

namespace quick {

// The scores' options, as attention and decode share them.
struct Scores {
  float softcap, scale;
  hexad_tensor *slopes, *sinks;

  Scores(Values& v, int softcap_at, int scale_at, int slopes_at, int sinks_at, int64_t heads,
         int64_t dim) {
    const double cap = v.real(softcap_at, 1), factor = v.real(scale_at);
    v.want(cap > 0 && std::isfinite(cap) && std::isfinite(factor));
    softcap = v.none(softcap_at) ? 0 : float(cap);
    scale = float(v.none(scale_at) ? std::pow(double(dim), -0.5) : factor);
    slopes = per_head(v, slopes_at, heads), sinks = per_head(v, sinks_at, heads);
  }

 private:
  static hexad_tensor* per_head(Values& v, int i, int64_t heads) {
    hexad_tensor* t = v.tensor(i);
    if (t && v.float32(t)) v.want(t->ndim == 1 && t->shape[0] == heads);
    return t;
  }
};

// A mask that broadcasts to `want`, seen with four dimensions.
struct Mask {
  int64_t shape[4] = {1, 1, 1, 1}, strides[4] = {};
  hexad_tensor seen{};

  Mask(Values& v, int at, const int64_t* want, const hexad_tensor* q) {
    const hexad_tensor* t = v.tensor(at, Layout::any);
    if (!t || !v.ok) return;
    const bool boolean = t->dtype_code == 6 && t->dtype_bits == 8;
    const bool wide = t->dtype_code == 2 && t->dtype_bits == 32;
    if (!v.want(t->ndim <= 4 && t->strides) || (!boolean && !wide && !v.same_dtype(t, q))) return;
    seen = *t;
    const int missing = 4 - t->ndim;
    for (int d = 0; d < t->ndim; ++d) {
      shape[missing + d] = t->shape[d], strides[missing + d] = t->strides[d];
      v.want(t->shape[d] == 1 || t->shape[d] == want[missing + d]);
    }
    seen.ndim = 4, seen.shape = shape, seen.strides = strides;
  }
  hexad_tensor* get() { return seen.shape ? &seen : nullptr; }
};

inline PyObject* attention(Values& v) {
  hexad_tensor *q = v.given(0, 4, Layout::unit), *k = v.given(1, 4, Layout::unit),
               *value = v.given(2, 4, Layout::unit);
  const int32_t causal = v.code(4);
  const int64_t left = v.integer(5), right = v.integer(6);
  if (!v.ok || !v.same_dtype(k, q) || !v.same_dtype(value, q)) return nullptr;
  const int64_t batch = q->shape[0], heads = q->shape[1], rows = q->shape[2], dim = q->shape[3];
  v.want(k->shape[0] == batch && value->shape[0] == batch && k->shape[1] == value->shape[1] &&
         k->shape[2] == value->shape[2] && k->shape[3] == dim && dim > 0);
  v.want(k->shape[1] > 0 && heads % k->shape[1] == 0);
  Scores scores(v, 7, 8, 9, 10, heads, dim);
  const int64_t scored[4] = {batch, heads, rows, k->shape[2]};
  Mask mask(v, 3, scored, q);
  const int64_t shape[4] = {batch, heads, rows, value->shape[3]};
  Output out(v, q, 4, shape);
  Statistics lse(v, {batch, heads, rows});
  const bool done = run(v, [&] {
    return hexad_attention(q, k, value, mask.get(), scores.slopes, scores.sinks, out.get(),
                           lse.get(), causal, left, right, scores.softcap, scores.scale, nullptr);
  });
  return done ? pair(out, lse) : nullptr;
}

}  // namespace quick
