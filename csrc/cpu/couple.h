// What forward and backward of coupling share: the scale maps, the sum of s, and the cut of rows
// into pieces.
#pragma once

#include <algorithm>

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/stores.h"
#include "op/coupling.h"

namespace hexad {
namespace {

enum Map { kExp, kTanh, kSigmoid, kAdditive };

// e^x for |x| <= 87. 1 + x + x^2 P: a minimax fit in float64, relative error below 3.1e-9.
template <int N>
HEXAD_INLINE void exp_within(vf (&x)[N]) {
  const vf magic = set1(12582912.f);
  vf n[N], p[N];
  vi k[N];
  HEXAD_EACH {
    const vf t = fma(x[i], set1(1.44269504088896341f), magic);
    k[i] = bits(t) - bits(magic);
    n[i] = t - magic;
  }
  HEXAD_EACH x[i] = fma(n[i], set1(-0.693359375f), x[i]);
  HEXAD_EACH x[i] = fma(n[i], set1(2.12194440e-4f), x[i]);
  HEXAD_EACH p[i] = fma(set1(1.3814549e-3f), x[i], set1(8.3687352e-3f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(4.1668389e-2f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.6666521e-1f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(4.9999994e-1f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f));
  HEXAD_EACH p[i] = fma(p[i], x[i], set1(1.f));
  HEXAD_EACH x[i] = times_power(p[i], n[i], k[i]);
}

// clamp * tanh(r / clamp), of |r|: x + x z P(z), z = x^2, a minimax fit (relative error below
// 1.5e-8), where 1 - 2 / (e^2x + 1) would cancel, and that elsewhere.
template <int N>
HEXAD_INLINE void bounded(vf (&r)[N], float clamp) {
  const vf inverse = set1(1.f / clamp), most = set1(std::min(20.f * clamp, 3e38f));
  vf a[N], x[N], z[N], p[N], e[N];
  HEXAD_EACH a[i] = min(most, abs(r[i]));
  HEXAD_EACH x[i] = a[i] * inverse;
  HEXAD_EACH x[i] = fma(fma(-x[i], set1(clamp), a[i]), inverse, x[i]);
  HEXAD_EACH e[i] = x[i] + x[i];
  exp_within(e);
  HEXAD_EACH e[i] = set1(1.f) - set1(2.f) / (e[i] + set1(1.f));
  HEXAD_EACH z[i] = x[i] * x[i];
  HEXAD_EACH p[i] = fma(set1(0.017241517f), z[i], set1(-0.053045504f));
  HEXAD_EACH p[i] = fma(p[i], z[i], set1(0.13325879f));
  HEXAD_EACH p[i] = fma(p[i], z[i], set1(-0.33333144f));
  HEXAD_EACH p[i] = fma(x[i] * z[i], p[i], x[i]);
  HEXAD_EACH x[i] = select(less(x[i], set1(0.5f)), p[i], e[i]);
  HEXAD_EACH r[i] = set1(clamp) * from_bits(bits(x[i]) | (bits(r[i]) & set1i(int32_t(0x80000000))));
}

// The sum of s over a run: a block of vectors, then two floats a lane that keep what rounding
// loses. For kSigmoid, s = min(z, 0) - ln(1 + e^-|z|), z = r + 2: the logarithms of a block are one
// logarithm of the product, which is carried in two floats so that nothing is lost where all
// factors are near 1.
template <int M>
struct LogDet {
  static constexpr int kBlock = M == kSigmoid ? 32 : 4;
  vf block = zero(), total = zero(), lost = zero();
  vf product = set1(1.f), low = zero();
  int count = 0;

  HEXAD_INLINE void end_vector() {
    if (M != kAdditive && ++count == kBlock) end_block();
  }
  HEXAD_INLINE void end_block() {
    if (M == kSigmoid) block = block - (log(product) + low / product);
    const vf next = total + block, back = next - total;
    lost = lost + ((total - (next - back)) + (block - back));
    total = next;
    block = low = zero();
    product = set1(1.f);
    count = 0;
  }
  double sum_s() {
    if (M == kAdditive) return 0;
    if (count) end_block();
    float t[kLanes], l[kLanes];
    store(t, total), store(l, select(equal(lost, lost), lost, zero()));  // inf - inf is no loss
    double lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = double(t[i]) + double(l[i]);
    for (int n = kLanes / 2; n > 0; n /= 2)
      for (int i = 0; i < n; ++i) lane[i] += lane[i + n];
    return lane[0];
  }
  HEXAD_INLINE void multiply(vf e, vf u) {  // by 1 + e, u being that rounded
    const vf rest = e - (u - set1(1.f));
    const vf next = product * u;
    low = fma(low, u, fma(product, rest, fma(product, u, -next)));
    product = next;
  }
};

// r, 16 raw scales each, becomes e^s, or e^-s; s counts where `active` (kMasked) or everywhere.
template <int M, bool kInverse, bool kMasked, int N>
HEXAD_INLINE void factor(vf (&r)[N], float clamp, vi active, LogDet<M>& d) {
  if constexpr (M == kSigmoid) {
    vf e[N];
    HEXAD_EACH r[i] = r[i] + set1(2.f);
    HEXAD_EACH e[i] = -abs(r[i]);
    exp(e);
    HEXAD_EACH {
      const vf z = r[i], u = set1(1.f) + e[i], falling = min(zero(), z);
      if constexpr (kMasked) {
        d.block = d.block + select(active, falling, zero());
        const vf counted = select(active, e[i], zero());
        d.multiply(counted, set1(1.f) + counted);
      } else {
        d.block = d.block + falling;
        d.multiply(e[i], u);
      }
      // sigmoid(z) = 1 / u, or e / u for z < 0; for the inverse upside down.
      const vf top = select(less(z, zero()), e[i], set1(1.f));
      r[i] = kInverse ? u / top : top / u;
      d.end_vector();
    }
  } else {
    if constexpr (M == kTanh) bounded(r, clamp);
    HEXAD_EACH {
      d.block = d.block + (kMasked ? select(active, r[i], zero()) : r[i]);
      d.end_vector();
    }
    HEXAD_EACH r[i] = kInverse ? -r[i] : r[i];
    if (M == kTanh && clamp <= 80)
      exp_within(r);
    else
      exp(r);
  }
}

// e^s (or e^-s) and ds/dr of 16 raw scales.
struct Slope {
  vf factor, slope;
};
template <int M, bool kInverse>
HEXAD_INLINE Slope slope_of(vf raw, float clamp) {
  if constexpr (M == kAdditive) return {set1(1.f), zero()};
  if constexpr (M == kSigmoid) {
    const vf z = raw + set1(2.f);
    const vf e = exp(-abs(z)), u = set1(1.f) + e;
    const vi negative = less(z, zero());
    const vf top = select(negative, e, set1(1.f));
    return {kInverse ? u / top : top / u, select(negative, set1(1.f), e) / u};
  }
  if constexpr (M == kTanh) {
    vf s[1] = {raw};
    bounded(s, clamp);
    const vf t = s[0] * set1(1.f / clamp);
    return {exp(kInverse ? -s[0] : s[0]), fma(-t, t, set1(1.f))};
  }
  return {exp(kInverse ? -raw : raw), set1(1.f)};
}

// Rows are cut at places that only their own size decides: the sums of a row's pieces are added in
// order, whoever computed them.
constexpr int64_t kPiece = 1 << 15;  // active elements
constexpr int64_t kSums = 4096;      // on the stack of the thread that adds them

struct Cut {
  int64_t pieces, size;  // size: active elements of a piece, or image rows for a checkerboard

  explicit Cut(const CouplingMap& a) {
    const int64_t total = a.checkerboard ? a.row / a.width : a.active;
    const int64_t unit = a.checkerboard ? std::max<int64_t>(1, kPiece / a.width) : kPiece;
    size = std::max(unit, (total / 1024 + unit) / unit * unit);
    pieces = std::max<int64_t>(1, (total + size - 1) / size);
  }
};

// f(batch row, piece) -> sum of s; each row's whole sum goes to done(batch row, sum).
template <class F, class Done>
HEXAD_INLINE void for_pieces(const CouplingMap& a, const F& f, const Done& done) {
  const Cut cut(a);
  if (cut.pieces == 1) {
    const int64_t grain = std::max<int64_t>(1, 8192 / std::max<int64_t>(a.row, 1));
    return parallel_for(a.batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) done(b, f(cut, b, 0));
    });
  }
  double sums[kSums];
  const int64_t together = kSums / cut.pieces;
  for (int64_t first = 0; first < a.batch; first += together) {
    const int64_t rows = std::min(together, a.batch - first);
    parallel_for(rows * cut.pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        sums[i] = f(cut, first + i / cut.pieces, i % cut.pieces);
    });
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t p = 0; p < cut.pieces; ++p) sum += sums[r * cut.pieces + p];
      done(first + r, sum);
    }
  }
}

// The passive elements that go with piece p of a channel split.
struct Range {
  int64_t begin, end;
};
HEXAD_INLINE Range passive(const CouplingMap& a, const Cut& cut, int64_t p) {
  const int64_t total = a.row - a.active, begin = a.active_begin ? 0 : a.active;
  const int64_t size = (total / cut.pieces + kLanes) / kLanes * kLanes;
  return {begin + std::min(total, p * size),
          begin + (p + 1 == cut.pieces ? total : std::min(total, (p + 1) * size))};
}

}  // namespace
}  // namespace hexad
