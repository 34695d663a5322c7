// A tensor seen as rows: contiguous with any leading dimensions, or a matrix with a row stride.
#pragma once

#include "check.h"

namespace hexad {

struct Rows {
  int64_t count, size, stride;
};

inline Rows rows_of(const hexad_tensor* t, const char* name) {
  require_tensor(t, name, 1);
  const int64_t size = t->shape[t->ndim - 1];
  int64_t count = 1;
  for (int i = 0; i + 1 < t->ndim; ++i) count *= t->shape[i];
  if (is_contiguous(*t)) return {count, size, size};
  HEXAD_REQUIRE(t->ndim == 2, "%s: wants contiguous memory, or a matrix with contiguous rows",
                name);
  require_rows(*t, name);
  return {count, size, stride(*t, 0)};
}

}  // namespace hexad
