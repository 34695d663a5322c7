// A tensor seen as rows: contiguous with any leading dimensions, or a matrix with a row stride.
#pragma once

#include "check.h"

namespace hexad {

struct Rows {
  int64_t count, size, stride;
};

inline bool contiguous(const hexad_tensor& t) {
  if (numel(t) == 0) return true;
  int64_t want = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && stride(t, i) != want) return false;
    want *= t.shape[i];
  }
  return true;
}

inline Rows rows_of(const hexad_tensor* t, const char* name) {
  HEXAD_REQUIRE(t, "%s: missing", name);
  HEXAD_REQUIRE(t->ndim >= 1, "%s: is a scalar, wants rows", name);
  const int64_t size = t->shape[t->ndim - 1];
  int64_t count = 1;
  for (int i = 0; i + 1 < t->ndim; ++i) count *= t->shape[i];
  if (contiguous(*t)) return {count, size, size};
  HEXAD_REQUIRE(t->ndim == 2, "%s: wants contiguous memory, or a matrix with contiguous rows",
                name);
  require_rows(*t, name);
  return {count, size, stride(*t, 0)};
}

inline void require_contiguous(const hexad_tensor& t, const char* name) {
  HEXAD_REQUIRE(contiguous(t), "%s: wants contiguous memory", name);
}

}  // namespace hexad
