// A square of vectors, transposed; the last part of vec.h.
#pragma once

#include "cpu/vec.h"

namespace hexad {
namespace {

// The square of n vectors of n lanes, transposed in place by swapping ever smaller blocks across
// the diagonal.
template <int H, class V, int... L>
HEXAD_INLINE void swap_blocks(V& a, V& b, std::integer_sequence<int, L...>) {
  constexpr int n = sizeof...(L);
  const V x = a, y = b;
  a = __builtin_shufflevector(x, y, (L & H ? n + L - H : L)...);
  b = __builtin_shufflevector(x, y, (L & H ? n + L : L + H)...);
}
template <int H, class V>
HEXAD_INLINE void transpose_from(V* v) {
  constexpr int n = sizeof(V) / sizeof(float);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i)
    if (!(i & H)) swap_blocks<H>(v[i], v[i + H], std::make_integer_sequence<int, n>{});
  if constexpr (H > 1) transpose_from<H / 2>(v);
}
template <class V>
HEXAD_INLINE void transpose(V* v) {
  transpose_from<sizeof(V) / sizeof(float) / 2>(v);
}
template <class T>
HEXAD_INLINE void transpose(Pair<T>* v) {
  constexpr int n = sizeof(T) / sizeof(float);
  T a[n], b[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) a[i] = v[i].lo, b[i] = v[n + i].hi;
  transpose(a), transpose(b);
  T c[n], d[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) c[i] = v[i].hi, d[i] = v[n + i].lo;
  transpose(c), transpose(d);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) v[i] = {a[i], d[i]}, v[n + i] = {c[i], b[i]};
}

}  // namespace
}  // namespace hexad
