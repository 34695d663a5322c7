// Rotary position embedding of one row: pairs (x1, x2) become (x1 c - x2 s, x2 c + x1 s). A pair is
// (i, i + n/2), or neighbours (2i, 2i + 1) when interleaved. kPast: y goes past the cache, for
// halves of whole aligned lines.
#pragma once

#include "cpu/stores.h"

namespace hexad {
namespace {

template <bool kPast = false, class T, class C>
HEXAD_INLINE void rotate(const T* x, T* y, const C* cos, const C* sin, int64_t n,
                         bool interleaved) {
  const int64_t half = n / 2;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
      const float c = to_float(cos[i]), s = to_float(sin[i]);
      put(y + 2 * i, a * c - b * s);
      put(y + 2 * i + 1, b * c + a * s);
    }
    return;
  }
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t here = half - i;
    if (here >= kLanes) {
      const vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
      put(y + i, a * c - b * s, kPast);
      put(y + half + i, b * c + a * s, kPast);
    } else {
      const vf a = load_first(x + i, here), b = load_first(x + half + i, here);
      const vf c = load_first(cos + i, here), s = load_first(sin + i, here);
      store_first(y + i, a * c - b * s, here);
      store_first(y + half + i, b * c + a * s, here);
    }
  }
}

}  // namespace
}  // namespace hexad
