// Affine and additive coupling: one pass over each batch row, log-determinant alongside.
#include "op/coupling.h"

#include <algorithm>

#include "cpu/math.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

HEXAD_INLINE vf log_scale_of(vf raw, int map, float clamp) {
  if (map == 1) return set1(clamp) * tanh(raw / set1(clamp));
  if (map == 2) return log_sigmoid(raw + set1(2.f));
  return raw;
}

// 16 elements; lanes outside `active` pass through and count nothing.
template <class T>
HEXAD_INLINE vf transform(const CouplingArgs& a, vf x, vf shift, vf raw, vi active, vf& total) {
  const vf s = a.log_scale ? log_scale_of(raw, a.scale_map, a.clamp) : zero();
  const vf moved = a.inverse ? (x - shift) * exp(-s) : fma(x, exp(s), shift);
  total = total + select(active, s, zero());
  return select(active, moved, x);
}

// A run of elements with one mask per 16; returns its sum of s in double, so long rows keep
// accuracy.
template <class T>
double run(const CouplingArgs& a, const T* x, const T* shift, const T* raw, T* y, int64_t n,
           vi active) {
  double sum_s = 0;
  int64_t i = 0;
  while (i < n) {
    vf total = zero();
    const int64_t stop = std::min(n, i + 16 * kLanes);
    for (; i + kLanes <= stop; i += kLanes)
      store(y + i, transform<T>(a, load(x + i), load(shift + i), raw ? load(raw + i) : zero(),
                                active, total));
    if (i < stop) {
      const int64_t rest = stop - i;
      const vi here = active & less_int(iota(), set1i(int32_t(rest)));
      const vf r = raw ? load_first(raw + i, rest) : zero();
      store_first(
          y + i,
          transform<T>(a, load_first(x + i, rest), load_first(shift + i, rest), r, here, total),
          rest);
      i = stop;
    }
    sum_s += sum(total);
  }
  return sum_s;
}

template <class T>
void rows(const CouplingArgs& a, int64_t begin, int64_t end) {
  const vi all = set1i(-1);
  const vi odd = less_int(set1i(0), iota() & set1i(1));
  for (int64_t b = begin; b < end; ++b) {
    const T* x = static_cast<const T*>(a.x) + b * a.x_stride;
    T* y = static_cast<T*>(a.y) + b * a.y_stride;
    const T* shift = static_cast<const T*>(a.shift) + b * a.shift_stride;
    const T* raw = a.log_scale ? static_cast<const T*>(a.log_scale) + b * a.scale_stride : nullptr;
    double log_det = 0;
    if (a.checkerboard) {
      for (int64_t r = 0; r < a.row / a.width; ++r) {
        const bool odd_active = (r % a.height % 2 == 0) != a.flip;
        const int64_t at = r * a.width;
        log_det += run(a, x + at, shift + at, raw ? raw + at : nullptr, y + at, a.width,
                       odd_active ? odd : odd ^ all);
      }
    } else {
      const int64_t at = a.active_begin, after = at + a.active;
      std::copy(x, x + at, y);
      log_det = run(a, x + at, shift, raw, y + at, a.active, all);
      std::copy(x + after, x + a.row, y + after);
    }
    a.log_det[b] = float(a.inverse ? -log_det : log_det);
  }
}

}  // namespace

namespace HEXAD_ISA {

void coupling(const CouplingArgs& a) {
  const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(a.row, 1));
  parallel_for(a.batch, grain, [&](int64_t begin, int64_t end) {
    a.bf16 ? rows<bf16>(a, begin, end) : rows<float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
