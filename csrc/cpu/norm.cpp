// Layer, RMS and group normalisation: statistics in two passes, then everything else in a third.
#include "op/norm.h"

#include <algorithm>

#include "cpu/math.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

struct Moments {
  float mean, mean_low;  // the mean is their sum
  float inverse;         // 1 / sqrt(var + eps)
};

// Sums of N terms over a run, in blocks of 1024 elements so that long runs keep accuracy.
template <int N, class T, class Terms>
HEXAD_INLINE void totals(const T* x, int64_t n, const Terms& terms, double (&out)[N]) {
  for (int m = 0; m < N; ++m) out[m] = 0;
  for (int64_t i = 0; i < n;) {
    vf sums[4][N];
    for (int j = 0; j < 4; ++j)
      for (int m = 0; m < N; ++m) sums[j][m] = zero();
    const int64_t stop = std::min(n, i + 64 * kLanes);
    vf term[N];
    for (; i + 4 * kLanes <= stop; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j) {
        terms(load(x + i + j * kLanes), term);
        for (int m = 0; m < N; ++m) sums[j][m] = sums[j][m] + term[m];
      }
    for (; i + kLanes <= stop; i += kLanes) {
      terms(load(x + i), term);
      for (int m = 0; m < N; ++m) sums[0][m] = sums[0][m] + term[m];
    }
    if (i < stop) {
      const vi live = less_int(iota(), set1i(int32_t(stop - i)));
      terms(load_part(x + i, stop - i), term);
      for (int m = 0; m < N; ++m) sums[1][m] = sums[1][m] + select(live, term[m], zero());
      i = stop;
    }
    for (int m = 0; m < N; ++m)
      out[m] += sum((sums[0][m] + sums[1][m]) + (sums[2][m] + sums[3][m]));
  }
}

template <class T>
Moments moments(const NormArgs& a, const T* x) {
  const double n = double(a.row);
  if (a.rms) {
    double square[1];
    totals(x, a.row, [](vf v, vf* term) { term[0] = v * v; }, square);
    return {0.f, 0.f, float(1 / __builtin_sqrt(square[0] / n + a.eps))};
  }
  double total[1], centred[2];
  totals(x, a.row, [](vf v, vf* term) { term[0] = v; }, total);
  // The second pass also finds what rounding left out of the mean: rows far from zero need it.
  const float mean = float(total[0] / n);
  totals(
      x, a.row,
      [mean](vf v, vf* term) {
        term[0] = v - set1(mean);
        term[1] = term[0] * term[0];
      },
      centred);
  const double low = centred[0] / n;
  const double var = std::max(0.0, centred[1] / n - low * low);
  return {mean, float(low), float(1 / __builtin_sqrt(var + a.eps))};
}

// What a feature does after normalisation. Missing pointers do nothing.
template <class T>
struct Affine {
  const T *weight, *bias, *scale, *shift;

  Affine from(int64_t feature) const {
    return {weight ? weight + feature : weight, bias ? bias + feature : bias,
            scale ? scale + feature : scale, shift ? shift + feature : shift};
  }
};

// Elements share one feature, or have one each.
template <bool kShared, class T>
void finish(const NormArgs& a, const Moments& m, const T* x, T* y, int64_t n,
            const Affine<T>& affine) {
  const vf mean = set1(m.mean), low = set1(m.mean_low), inverse = set1(m.inverse);
  const auto read = [&](const T* p, int64_t i, int64_t count) __attribute__((always_inline)) {
    if (kShared) return set1(to_float(*p));
    return count == kLanes ? load(p + i) : load_part(p + i, count);
  };
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, n - i);
    vf v = count == kLanes ? load(x + i) : load_part(x + i, count);
    v = ((v - mean) - low) * inverse;
    if (affine.weight) v = v * read(affine.weight, i, count);
    if (affine.bias) v = v + read(affine.bias, i, count);
    if (affine.scale) v = fma(v, read(affine.scale, i, count), v);
    if (affine.shift) v = v + read(affine.shift, i, count);
    if (a.silu) v = v * sigmoid(v);
    count == kLanes ? store(y + i, v) : store_first(y + i, v, count);
  }
}

template <class T>
void rows(const NormArgs& a, int64_t begin, int64_t end) {
  const int64_t per_row = a.row / a.spatial;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * a.x_stride;
    T* y = static_cast<T*>(a.y) + r * a.y_stride;
    const int64_t batch = r / a.rows_per_batch;
    const T* scale = static_cast<const T*>(a.scale);
    const T* shift = static_cast<const T*>(a.shift);
    const Affine<T> affine =
        Affine<T>{static_cast<const T*>(a.weight), static_cast<const T*>(a.bias),
                  scale ? scale + batch * a.scale_stride : nullptr,
                  shift ? shift + batch * a.shift_stride : nullptr}
            .from(r * per_row % a.features);
    const Moments m = moments(a, x);
    if (a.spatial == 1) {
      finish<false>(a, m, x, y, a.row, affine);
    } else {
      for (int64_t f = 0; f < per_row; ++f)
        finish<true>(a, m, x + f * a.spatial, y + f * a.spatial, a.spatial, affine.from(f));
    }
  }
}

}  // namespace

namespace HEXAD_ISA {

void norm(const NormArgs& a) {
  if (a.row == 0) return;
  const int64_t grain = std::max<int64_t>(1, 16384 / a.row);
  parallel_for(a.rows, grain, [&](int64_t begin, int64_t end) {
    a.bf16 ? rows<bf16>(a, begin, end) : rows<float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
