// Elementary functions on the 16-lane vector. Written with fma, +, -, *, / and integer operations
// only, so every instruction set gives the same bits. NaN goes in and comes out.
#pragma once

#include <type_traits>

#include "cpu/mask.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

// e^r for |r| <= ln 2 / 2, Taylor to r^7 (relative error below 6e-9).
HEXAD_INLINE vf exp_near_zero(vf r) {
  vf p = set1(1.f / 5040);
  p = fma(p, r, set1(1.f / 720));
  p = fma(p, r, set1(1.f / 120));
  p = fma(p, r, set1(1.f / 24));
  p = fma(p, r, set1(1.f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.f));
  p = fma(p, r, set1(1.f));
  return p;
}

// Several vectors side by side, where registers suffice: their chains fill each other's waits.
constexpr int kAtOnce = std::is_same<vf, f32x16>::value ? 2 : 1;
#define HEXAD_EACH _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i)

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2, then 2^n so that subnormal results round once and overflow
// reaches infinity.
template <int N>
HEXAD_INLINE void exp(vf (&x)[N]) {
  const vf magic = set1(12582912.f);
  vf n[N], p[N];
  vi k[N];
  HEXAD_EACH x[i] = max(set1(-104.f), min(set1(89.f), x[i]));
  HEXAD_EACH {
    const vf t = x[i] * set1(1.44269504088896341f) + magic;
    k[i] = bits(t) - bits(magic);
    n[i] = t - magic;
  }
  HEXAD_EACH x[i] = fma(n[i], set1(-0.693359375f), x[i]);
  HEXAD_EACH x[i] = fma(n[i], set1(2.12194440e-4f), x[i]);
  HEXAD_EACH p[i] = fma(set1(1.f / 5040), x[i], set1(1.f / 720));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f / 120));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f / 24));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f / 6));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(0.5f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f));
  HEXAD_EACH x[i] = times_power(p[i], n[i], k[i]);
}
HEXAD_INLINE vf exp(vf x) {
  vf v[1] = {x};
  exp(v);
  return v[0];
}

// ln x: x = 2^e m, m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh((m-1)/(m+1)). ln 0 = -inf, x < 0 NaN.
HEXAD_INLINE vf log(vf x) {
  const vi tiny = less(x, set1(1.17549435e-38f));
  const vf scaled = select(tiny, x * set1(8388608.f), x);
  const vi raw = bits(scaled);
  vi e = (raw - set1i(0x3f3504f3)) >> 23;
  const vf m = from_bits(raw - (e << 23));
  e = e - (tiny & set1i(23));
  const vf s = (m - set1(1.f)) / (m + set1(1.f));
  const vf z = s * s;
  vf p = set1(2.f / 11);
  p = fma(p, z, set1(2.f / 9));
  p = fma(p, z, set1(2.f / 7));
  p = fma(p, z, set1(2.f / 5));
  p = fma(p, z, set1(2.f / 3));
  const vf ef = to_float(e + set1i(1024)) - set1(1024.f);
  // 2s + s z p is ln m; the exponent's part is added in two pieces, the exact one last.
  vf r = fma(s * z, p, ef * set1(-2.12194440e-4f));
  r = fma(s, set1(2.f), r);
  r = fma(ef, set1(0.693359375f), r);
  const float inf = __builtin_inff();
  r = select(equal(x, zero()), set1(-inf), r);
  r = select(equal(x, set1(inf)), x, r);
  const vi bad = less(x, zero());
  r = select(bad, set1(__builtin_nanf("")), r);
  return select(equal(x, x), r, x);
}

// tanh: the continued fraction x (a + z(b + z(c + z))) / (a + z(d + z(e + 28 z))), z = x^2, near 0
// where 1 - 2/(e^2x + 1) cancels.
HEXAD_INLINE vf tanh_near_zero(vf x) {
  const vf z = x * x;
  const vf num = fma(fma(z + set1(378.f), z, set1(17325.f)), z, set1(135135.f));
  const vf den = fma(fma(fma(set1(28.f), z, set1(3150.f)), z, set1(62370.f)), z, set1(135135.f));
  return x * (num / den);
}
HEXAD_INLINE vf tanh(vf x) {
  const vf a = abs(x);
  const vf small = tanh_near_zero(x);
  const vf e = exp(a + a);
  const vf large = set1(1.f) - set1(2.f) / (e + set1(1.f));
  const vi sign = bits(x) & set1i(int32_t(0x80000000));
  return select(less(a, set1(0.625f)), small, from_bits(bits(large) | sign));
}

// tanh(x) / x for z = x^2 below 1/4: a minimax fit in float64, relative error below 1.4e-8.
HEXAD_INLINE vf tanh_over_x(vf z) {
  vf p = set1(0.017135007f);
  p = fma(p, z, set1(-0.052986074f));
  p = fma(p, z, set1(0.13324779f));
  p = fma(p, z, set1(-0.33333069f));
  return fma(p, z, set1(1.f));
}

// cap tanh(s / cap), for scores of attention, which mostly lie far below the cap.
HEXAD_INLINE vf soft_cap(vf s, float cap) {
  const vf x = s * set1(1.f / cap), z = x * x;
  const vi near = less(z, set1(0.25f));
  vf y = x * tanh_over_x(z);
  if (!all_set(near)) y = select(near, y, tanh(x));
  return y * set1(cap);
}

// e^x for x <= 0, but 0 below 2^-125: a processor takes seven times as long over subnormals.
HEXAD_INLINE vf exp_above_subnormals(vf x) {
  const vf n = round(x * set1(1.44269504088896341f));
  vf r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  const vf e = from_bits(bits(exp_near_zero(r)) + (round_int(n) << 23));
  return select(less(n, set1(-125.f)), zero(), e);
}

// 1 / (1 + e^-x), through e^-|x| so that neither side overflows.
HEXAD_INLINE vf sigmoid(vf x) {
  const vf e = exp_above_subnormals(-abs(x));
  const vf r = set1(1.f) / (set1(1.f) + e);
  return select(less(x, zero()), e * r, r);
}

// The normal distribution function, (1 + erf(x / sqrt 2)) / 2, with relative accuracy in its lower
// tail: Phi(-t) = e^(-t^2/2) P(u) / (t + 4), u = (t - 4) / (t + 4). P is a Chebyshev fit in float64
// on 0 <= t <= 14.3, reweighted towards the least relative error (8e-9). What would be near the
// subnormals, beyond t = 12.9, is 0: a processor takes seven times as long over them.
HEXAD_INLINE vf normal_cdf(vf x) {
  const vf t = min(set1(15.f), abs(x));
  const vf inverse = set1(1.f) / (t + set1(4.f));
  const vf u = (t - set1(4.f)) * inverse;
  vf p = set1(-1.310222729e-4f);
  p = fma(p, u, set1(1.813898675e-4f));
  p = fma(p, u, set1(1.570642204e-3f));
  p = fma(p, u, set1(-3.513516003e-3f));
  p = fma(p, u, set1(-7.525829667e-3f));
  p = fma(p, u, set1(6.040396014e-2f));
  p = fma(p, u, set1(-1.865233499e-1f));
  p = fma(p, u, set1(3.871368961e-1f));
  p = fma(p, u, set1(-6.078965918e-1f));
  p = fma(p, u, set1(7.552851354e-1f));
  const vf square = t * t;
  const vf n = round(square * set1(-0.72134752044448170f));
  // r = -t^2 / 2 - n ln 2. The rounding of t^2 matters in the tail: its low half comes back.
  vf r = fma(n, set1(-0.693359375f), square * set1(-0.5f));
  r = fma(n, set1(2.12194440e-4f), r);
  r = fma(fma(t, t, -square), set1(-0.5f), r);
  const vf near = exp_near_zero(r) * (p * inverse);
  const vf tail =
      select(less(n, set1(-120.f)), zero(), from_bits(bits(near) + (round_int(n) << 23)));
  return select(less(x, zero()), tail, set1(1.f) - tail);
}

// e^x for x <= 0, the weights of a softmax: as exp, but what would be subnormal is 0.
HEXAD_INLINE vf exp_falling(vf x) {
  const vi gone = less(x, set1(-87.3f));
  x = max(set1(-87.3f), x);
  const vf t = fma(x, set1(1.44269504088896341f), set1(12582912.f));
  const vf n = t - set1(12582912.f);
  vf r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  const vf p = exp_near_zero(r);
  const vi k = bits(t) - bits(set1(12582912.f));
  return select(gone, zero(), from_bits(bits(p) + (k << 23)));
}

// exp_falling of several registers, the same bits.
template <int N>
HEXAD_INLINE void exp_falling(reg* x) {
  using ints = IntOf<reg>::type;
  const reg least = set1_reg(-87.3f), magic = set1_reg(12582912.f);
  ints gone[N], k[N];
  reg p[N];
  HEXAD_EACH gone[i] = less(x[i], least);
  HEXAD_EACH x[i] = larger(least, x[i]);
  HEXAD_EACH {
    const reg t = fma(x[i], set1_reg(1.44269504088896341f), magic);
    k[i] = ((ints)t - (ints)magic) << 23;
    p[i] = t - magic;
  }
  HEXAD_EACH x[i] = fma(p[i], set1_reg(-0.693359375f), x[i]);
  HEXAD_EACH x[i] = fma(p[i], set1_reg(2.12194440e-4f), x[i]);
  HEXAD_EACH p[i] = fma(set1_reg(1.f / 5040), x[i], set1_reg(1.f / 720));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1_reg(1.f / 120));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1_reg(1.f / 24));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1_reg(1.f / 6));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1_reg(0.5f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1_reg(1.f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1_reg(1.f));
  HEXAD_EACH x[i] = cleared(gone[i], (reg)((ints)p[i] + k[i]));
}

}  // namespace
}  // namespace hexad
