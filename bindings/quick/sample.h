// (logits, seeds, position, positions, temperature, temperatures, top_k, top_ks, top_p, top_ps,
// min_p, min_ps)
#pragma once

#include <algorithm>

#include "values.h"

namespace quick {

// Rows that need no workspace, or one row: how many threads share several is Python's to say.
inline PyObject* sample(Values& v) {
  constexpr int64_t own_scratch = 4096;
  hexad_tensor* logits = v.given(0, 2, Layout::unit);
  const int64_t position = v.integer(2), top_k = v.integer(6);
  const double temperature = v.real(4), top_p = v.real(8), min_p = v.real(10);
  for (int i : {4, 8, 10}) v.want(!v.none(i));
  if (!v.want(logits && position >= 0 && top_k >= 0 && temperature >= 0 &&
              std::isfinite(temperature) && top_p >= 0 && top_p <= 1 && min_p >= 0 && min_p <= 1))
    return nullptr;
  const int64_t batch = logits->shape[0], vocabulary = logits->shape[1];
  hexad_tensor *seeds = v.tensor(1), *positions = v.tensor(3), *top_ks = v.tensor(7);
  hexad_tensor *temperatures = v.tensor(5), *top_ps = v.tensor(9), *min_ps = v.tensor(11);
  for (const hexad_tensor* t : {seeds, positions, top_ks, temperatures, top_ps, min_ps})
    v.want(!t || (t->ndim == 1 && t->shape[0] == batch));
  for (const hexad_tensor* t : {seeds, positions, top_ks})
    if (t) v.dtype(t, 0, 64);
  for (const hexad_tensor* t : {temperatures, top_ps, min_ps})
    if (t) v.float32(t);
  const bool greedy = temperature == 0 && !temperatures;
  const bool alone = greedy || vocabulary <= own_scratch;
  if (!v.want(batch > 0 && vocabulary > 0 && (seeds || greedy) && (alone || batch == 1)))
    return nullptr;
  Output out(v, 0, 64, 1, &batch);
  const int64_t room[] = {1, 4 * vocabulary};
  Output workspace;
  if (!alone) workspace.make(v, 0, 32, 2, room);
  const bool done = run(v, [&] {
    return hexad_sample(logits, seeds, positions, top_ks, temperatures, top_ps, min_ps, out.get(),
                        workspace.get(), position, float(temperature), std::min(top_k, vocabulary),
                        float(top_p), float(min_p), nullptr);
  });
  return done ? out.release() : nullptr;
}

}  // namespace quick
