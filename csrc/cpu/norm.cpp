// Layer, RMS and group normalisation: statistics in two passes, then everything else in a third.
#include "op/norm.h"

#include <algorithm>

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

struct Moments {
  float mean, mean_low;  // the mean is their sum
  float inverse;         // 1 / sqrt(var + eps)
};

// The sum of f(x) over a run, in blocks of 1024 elements so that long runs keep accuracy.
template <class T, class F>
HEXAD_INLINE double total(const T* x, int64_t n, const F& f) {
  double out = 0;
  for (int64_t i = 0; i < n;) {
    vf a = zero(), b = zero(), c = zero(), d = zero();
    const int64_t stop = std::min(n, i + 64 * kLanes);
    for (; i + 4 * kLanes <= stop; i += 4 * kLanes) {
      a = a + f(load(x + i));
      b = b + f(load(x + i + kLanes));
      c = c + f(load(x + i + 2 * kLanes));
      d = d + f(load(x + i + 3 * kLanes));
    }
    for (; i + kLanes <= stop; i += kLanes) a = a + f(load(x + i));
    if (i < stop) {
      const vi live = less_int(iota(), set1i(int32_t(stop - i)));
      b = b + select(live, f(load_part(x + i, stop - i)), zero());
      i = stop;
    }
    out += sum((a + b) + (c + d));
  }
  return out;
}

// The sums of x - pivot and of its square.
template <class T>
HEXAD_INLINE void centred(const T* x, int64_t n, float pivot, double& first, double& second) {
  const vf m = set1(pivot);
  first = second = 0;
  for (int64_t i = 0; i < n;) {
    vf a1 = zero(), b1 = zero(), c1 = zero(), d1 = zero();
    vf a2 = zero(), b2 = zero(), c2 = zero(), d2 = zero();
    const auto add = [](vf v, vf& one, vf& two) __attribute__((always_inline)) {
      one = one + v;
      two = fma(v, v, two);
    };
    const int64_t stop = std::min(n, i + 64 * kLanes);
    for (; i + 4 * kLanes <= stop; i += 4 * kLanes) {
      add(load(x + i) - m, a1, a2);
      add(load(x + i + kLanes) - m, b1, b2);
      add(load(x + i + 2 * kLanes) - m, c1, c2);
      add(load(x + i + 3 * kLanes) - m, d1, d2);
    }
    for (; i + kLanes <= stop; i += kLanes) add(load(x + i) - m, a1, a2);
    if (i < stop) {
      const vi live = less_int(iota(), set1i(int32_t(stop - i)));
      add(select(live, load_part(x + i, stop - i) - m, zero()), b1, b2);
      i = stop;
    }
    first += sum((a1 + b1) + (c1 + d1));
    second += sum((a2 + b2) + (c2 + d2));
  }
}

template <class T>
HEXAD_INLINE Moments moments(const NormArgs& a, const T* x) {
  const double n = double(a.row);
  if (a.rms) {
    const double square =
        total(x, a.row, [](vf v) __attribute__((always_inline)) { return v * v; });
    return {0.f, 0.f, float(1 / __builtin_sqrt(square / n + a.eps))};
  }
  // One pass about the mean of the first elements gives both moments. Where it turns out to lie too
  // far from the row's mean, the squares have lost digits: another pass then goes about that.
  const int64_t few = std::min<int64_t>(a.row, kLanes);
  double mean = sum(load_part(x, few)) / float(few), var = 0;
  for (int pass = 0; pass < 2; ++pass) {
    const float pivot = float(mean);
    double first, second;
    centred(x, a.row, pivot, first, second);
    const double off = first / n;
    mean = pivot + off;
    var = second / n - off * off;
    if (off * off <= 4 * var && var < double(__builtin_inff())) break;
  }
  const float near = float(mean);
  return {near, float(mean - near), float(1 / __builtin_sqrt(std::max(0.0, var) + a.eps))};
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

constexpr int64_t kAhead = 4096;  // elements of a row of which two fit the first cache

// Elements share one feature, or have one each. The common forms have loops of their own.
enum Form { kPlain, kWeight, kBoth, kSilu, kGeneral };  // kSilu: kBoth, then SiLU

template <bool kShared, Form kForm, class T>
void finish(const NormArgs& a, const Moments& m, const T* x, T* y, int64_t n,
            const Affine<T>& affine, bool past) {
  const vf mean = set1(m.mean), low = set1(m.mean_low), inverse = set1(m.inverse);
  const bool centred = !a.rms;
  // v is an array of vectors; read(pointer, i) gives a parameter for the i-th of them.
  const auto apply = [&](auto& v, const auto& read) __attribute__((always_inline)) {
    constexpr int N = sizeof v / sizeof v[0];
    if (centred) HEXAD_EACH v[i] = (v[i] - mean) - low;
    HEXAD_EACH v[i] = v[i] * inverse;
    if (kForm == kWeight || kForm == kBoth || kForm == kSilu ||
        (kForm == kGeneral && affine.weight))
      HEXAD_EACH v[i] = v[i] * read(affine.weight, i);
    if (kForm == kBoth || kForm == kSilu || (kForm == kGeneral && affine.bias))
      HEXAD_EACH v[i] = v[i] + read(affine.bias, i);
    if (kForm == kGeneral && affine.scale) HEXAD_EACH v[i] = fma(v[i], read(affine.scale, i), v[i]);
    if (kForm == kGeneral && affine.shift) HEXAD_EACH v[i] = v[i] + read(affine.shift, i);
    if (kForm == kSilu || (kForm == kGeneral && a.silu)) {
      vf e[N];
      HEXAD_EACH e[i] = -v[i];
      exp(e);
      HEXAD_EACH v[i] = v[i] / (set1(1.f) + e[i]);
    }
  };
  past = past && streams(y);
  // The next row comes in meanwhile: the passes over this one would leave memory idle.
  const bool ahead = a.row <= kAhead;
  int64_t at = 0;
  constexpr int N = kAtOnce;
  for (; at + N * kLanes <= n; at += N * kLanes) {
    const auto read = [&](const T* p, int i) __attribute__((always_inline)) {
      return kShared ? set1(to_float(*p)) : load(p + at + i * kLanes);
    };
    vf v[N];
    HEXAD_EACH {
      const int64_t here = at + i * kLanes;
      if (ahead && here * sizeof(T) % 64 == 0) {
        __builtin_prefetch(x + here + a.x_stride);
        if (!past) __builtin_prefetch(y + here + a.y_stride, 1);
      }
      v[i] = load(x + here);
    }
    apply(v, read);
    HEXAD_EACH put(y + at + i * kLanes, v[i], past);
  }
  for (; at < n; at += kLanes) {
    const int64_t rest = std::min<int64_t>(kLanes, n - at);
    const auto read = [&](const T* p, int) __attribute__((always_inline)) {
      return kShared ? set1(to_float(*p)) : load_part(p + at, rest);
    };
    vf v[1] = {load_part(x + at, rest)};
    apply(v, read);
    store_part(y + at, v[0], rest);
  }
}

template <bool kShared, class T>
HEXAD_INLINE void finish(const NormArgs& a, const Moments& m, const T* x, T* y, int64_t n,
                         const Affine<T>& affine, bool past) {
  if (affine.weight && affine.bias && a.silu && !affine.scale && !affine.shift)
    return finish<kShared, kSilu>(a, m, x, y, n, affine, past);
  if (affine.scale || affine.shift || a.silu || (affine.bias && !affine.weight))
    return finish<kShared, kGeneral>(a, m, x, y, n, affine, past);
  if (affine.bias) return finish<kShared, kBoth>(a, m, x, y, n, affine, past);
  if (affine.weight) return finish<kShared, kWeight>(a, m, x, y, n, affine, past);
  finish<kShared, kPlain>(a, m, x, y, n, affine, past);
}

template <class T>
void rows(const NormArgs& a, int64_t begin, int64_t end, bool past) {
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
      finish<false>(a, m, x, y, a.row, affine, past);
    } else {
      for (int64_t f = 0; f < per_row; ++f)
        finish<true>(a, m, x + f * a.spatial, y + f * a.spatial, a.spatial, affine.from(f), past);
    }
  }
}

}  // namespace

namespace HEXAD_ISA {

void norm(const NormArgs& a) {
  if (a.row == 0) return;
  const int64_t grain = std::max<int64_t>(1, 16384 / a.row);
  const bool past = beyond_cache(a.rows * a.row * (a.bf16 ? 2 : 4));
  parallel_for(a.rows, grain, [&](int64_t begin, int64_t end) {
    a.bf16 ? rows<bf16>(a, begin, end, past) : rows<float>(a, begin, end, past);
    if (past) drain();
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
