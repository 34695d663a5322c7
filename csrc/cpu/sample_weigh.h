// The weights of a chunk of logits, their sum, and the masses above marks: sample's arithmetic.
#pragma once

#include "cpu/mask.h"
#include "cpu/math.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

constexpr int64_t kChunk = 1024;

// w = exp((l - max) / temperature), 1 at the maximum also where that is infinite; 0 below `floor`,
// and where w would be subnormal, which no sum notices.
struct Weigh {
  float max, temperature, floor = 0.f;
  // The exponent is taken apart before the temperature divides it: l - max = n c + r, and w is
  // 2^n exp(r / temperature), c being temperature ln 2 in two floats.
  float inverse, turns, c, c_low, least;
  bool plain;  // no quotient or product above overflows

  Weigh(float max, float temperature) : max(max), temperature(temperature) {
    const double exact = 0.69314718055994530942 * temperature;
    inverse = float(1.0 / temperature), turns = float(1.0 / exact);
    c = float(exact), c_low = float(exact - c);
    least = -87.3f * temperature;
    plain = temperature > 1e-30f && temperature < 1e30f && max < __builtin_inff();
  }

  HEXAD_INLINE vf quick(vf l) const {
    vf gap = l - set1(max);
    const vi gone = less(gap, set1(least));
    gap = larger(set1(least), gap);
    const vf t = fma(gap, set1(turns), set1(12582912.f)), n = t - set1(12582912.f);
    const vf r = fma(n, set1(-c_low), fma(n, set1(-c), gap)) * set1(inverse);
    return select(gone, zero(), from_bits(bits(exp_near_zero(r)) + (bits(t) << 23)));
  }
  HEXAD_INLINE vf any(vf l) const {
    const vf gap = (l - set1(max)) / set1(temperature);
    return exp(select(equal(l, set1(max)), zero(), gap));
  }

  template <class T, class F>
  HEXAD_INLINE void each(const T* l, int64_t n, float* w, const F& f) const {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(w + i, f(load(l + i)));
    if (i < n) store_part(w + i, f(load_part(l + i, n - i)), n - i);
  }
  template <class T>
  void chunk(const T* l, int64_t n, float* w) const {
    const auto cut = [&](vf x) __attribute__((always_inline)) {
      return select(less(x, set1(floor)), zero(), x);
    };
    if (!plain)
      return each(l, n, w, [&](vf x) __attribute__((always_inline)) { return cut(any(x)); });
    if (floor > 0)
      return each(l, n, w, [&](vf x) __attribute__((always_inline)) { return cut(quick(x)); });
    each(l, n, w, [&](vf x) __attribute__((always_inline)) { return quick(x); });
  }

  // For sum_all: the weights of a chunk of `l`.
  template <class T>
  auto of(const T* l) const {
    return [this, l](float* w, int64_t at, int64_t n) -> const float* {
      chunk(l + at, n, w);
      return w;
    };
  }
};

// In float64, but for the first four of 64 that meet.
double sum_chunk(const float* w, int64_t n) {
  double lane[kLanes] = {};
  const auto add = [&](vf v) __attribute__((always_inline)) {
    float four[kLanes];
    store(four, v);
    for (int j = 0; j < kLanes; ++j) lane[j] += four[j];
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    add((load(w + i) + load(w + i + kLanes)) +
        (load(w + i + 2 * kLanes) + load(w + i + 3 * kLanes)));
  for (; i < n; i += kLanes) add(load_part(w + i, std::min<int64_t>(n - i, kLanes)));
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

constexpr int kMarks = 4;

// Adds to mass[j] the weight of a chunk's tokens with a logit of at least mark[j].
template <class T>
void add_masses(const T* l, const float* w, int64_t n, const float* mark, double* mass) {
  const vf m0 = set1(mark[0]), m1 = set1(mark[1]), m2 = set1(mark[2]), m3 = set1(mark[3]);
  vf a = zero(), b = zero(), c = zero(), d = zero();
  const auto add = [&](vf logit, vf weight) __attribute__((always_inline)) {
    a = add_from(a, weight, logit, m0), b = add_from(b, weight, logit, m1);
    c = add_from(c, weight, logit, m2), d = add_from(d, weight, logit, m3);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add(load(l + i), load(w + i));
  if (i < n) add(load_part(l + i, n - i), load_part(w + i, n - i));
  mass[0] += sum(a), mass[1] += sum(b), mass[2] += sum(c), mass[3] += sum(d);
}

}  // namespace
}  // namespace hexad
