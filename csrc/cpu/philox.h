// Philox4x32-10 (Salmon et al. 2011) and standard normals from its words, in plain scalar C++ on
// arrays of N: the same bits by any compiler, vectorised or not, on the CPU and in CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "anywhere.h"

namespace hexad {
namespace {

// N blocks that share a key: c[0..3] are their counter words, and become their random words.
template <int N>
HEXAD_ANYWHERE void philox(uint32_t (&c)[4][N], uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < N; ++i) {
      const uint64_t a = uint64_t(c[0][i]) * 0xD2511F53u, b = uint64_t(c[2][i]) * 0xCD9E8D57u;
      c[0][i] = uint32_t(b >> 32) ^ c[1][i] ^ k0;
      c[2][i] = uint32_t(a >> 32) ^ c[3][i] ^ k1;
      c[1][i] = uint32_t(b);
      c[3][i] = uint32_t(a);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// a b + c, rounded twice everywhere: nvcc would make one fma of it.
HEXAD_ANYWHERE double times_plus(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(__dmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

// u in (0, 1) with 52 bits, for draws from a distribution.
HEXAD_ANYWHERE double uniform52(uint32_t w0, uint32_t w1) {
  return (double(uint64_t(w0) << 20 | w1 >> 12) + 0.5) * (1.0 / 4503599627370496.0);
}

HEXAD_ANYWHERE double exactly(uint32_t w) {  // signed conversions are the ones that vectorise
  return double(int32_t(w ^ 0x80000000u)) + 2147483648.0;
}

// -2 ln u for u = (w + 1/2) 2^-32: u = 2^e m, m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh s with
// s = (m - 1) / (m + 1), |s| < 0.172, by its series to s^17.
HEXAD_ANYWHERE double minus_two_log(uint32_t w) {
  const double u = (exactly(w) + 0.5) * (1.0 / 4294967296.0);
  uint64_t bits;
  memcpy(&bits, &u, sizeof bits);
  const uint64_t shifted = bits + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
  const uint64_t mantissa = (shifted & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu;
  // 2^52 + the biased exponent, read as a double.
  const uint64_t exponent_bits = shifted >> 52 | 0x4330000000000000u;
  double m, exponent;
  memcpy(&m, &mantissa, sizeof m);
  memcpy(&exponent, &exponent_bits, sizeof exponent);
  exponent -= 4503599627370496.0 + 1023.0;
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 1.0 / 17;
  p = times_plus(p, z, 1.0 / 15);
  p = times_plus(p, z, 1.0 / 13);
  p = times_plus(p, z, 1.0 / 11);
  p = times_plus(p, z, 1.0 / 9);
  p = times_plus(p, z, 1.0 / 7);
  p = times_plus(p, z, 1.0 / 5);
  p = times_plus(p, z, 1.0 / 3);
  p = times_plus(p, z, 1.0);
  return -2.0 * times_plus(exponent, 0.69314718055994530942, 2.0 * s * p);
}

// sin and cos of 2 pi (w + 1/2) 2^-32. The quadrant nearest comes off the integer, exactly; on the
// rest, |x| <= pi / 4, Taylor to x^15 and x^14.
HEXAD_ANYWHERE void sin_cos(uint32_t w, double& sine, double& cosine) {
  const uint32_t turned = w + 0x20000000u;
  const double x = (double(int32_t(turned & 0x3fffffffu) - 0x20000000) + 0.5) *
                   (6.28318530717958647693 / 4294967296.0);
  const double z = x * x;
  double s = -1.0 / 1307674368000;
  s = times_plus(s, z, 1.0 / 6227020800);
  s = times_plus(s, z, -1.0 / 39916800);
  s = times_plus(s, z, 1.0 / 362880);
  s = times_plus(s, z, -1.0 / 5040);
  s = times_plus(s, z, 1.0 / 120);
  s = times_plus(s, z, -1.0 / 6);
  s = times_plus(s * z, x, x);
  double c = -1.0 / 87178291200;
  c = times_plus(c, z, 1.0 / 479001600);
  c = times_plus(c, z, -1.0 / 3628800);
  c = times_plus(c, z, 1.0 / 40320);
  c = times_plus(c, z, -1.0 / 720);
  c = times_plus(c, z, 1.0 / 24);
  c = times_plus(c, z, -1.0 / 2);
  c = times_plus(c, z, 1.0);
  const bool swap = turned & 0x40000000u, sine_down = turned & 0x80000000u,
             cosine_down = (turned ^ turned << 1) & 0x80000000u;
  const double first = swap ? c : s, second = swap ? s : c;
  sine = sine_down ? -first : first;
  cosine = cosine_down ? -second : second;
}

// Two words to two standard normals.
HEXAD_ANYWHERE void box_muller(uint32_t radius, uint32_t angle, float& z0, float& z1) {
  const double r = ::sqrt(minus_two_log(radius));
  double sine, cosine;
  sin_cos(angle, sine, cosine);
  z0 = float(r * cosine);
  z1 = float(r * sine);
}

// Block `block` of a row's normals: its elements 4 block to 4 block + 3.
HEXAD_ANYWHERE void normal_block(uint64_t seed, uint64_t offset, uint64_t block, float (&z)[4]) {
  uint32_t c[4][1] = {
      {uint32_t(block)}, {uint32_t(block >> 32)}, {uint32_t(offset)}, {uint32_t(offset >> 32)}};
  philox(c, seed);
  box_muller(c[0][0], c[1][0], z[0], z[1]);
  box_muller(c[2][0], c[3][0], z[2], z[3]);
}

}  // namespace
}  // namespace hexad
