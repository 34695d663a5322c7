// The scores of an int8 cache. No prefill has bits that they must repeat, so a lane is a dimension,
// one in sixteen of them: bytes are widened once for all queries, where they lie, and as many sums
// as a register has lanes are added across together, by the tree of sum().
#pragma once

#include "cpu/decode_tile.h"

namespace hexad {
namespace {

// Halves of blocks of 2 H lanes added: those of `a` in a block's lower half, of `b` in its upper.
template <int H, int... L>
HEXAD_INLINE reg fold(reg a, reg b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (L & H ? kRegLanes + L : L)...) +
         __builtin_shufflevector(a, b, (L & H ? kRegLanes + L - H : L + H)...);
}
// Lane L of the result is the sum over the lanes of v[L]; v is overwritten.
template <int H = kRegLanes / 2>
HEXAD_INLINE reg sums_across(reg* v) {
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i)
    v[i] = fold<H>(v[i], v[i + H], std::make_integer_sequence<int, kRegLanes>{});
  if constexpr (H > 1)
    return sums_across<H / 2>(v);
  else
    return v[0];
}

// s[r * J + j], lane by lane the products of query r with key j, over the dimensions whose place
// among sixteen is in one of the registers first, first + step, ...
template <int R, int J, int kFirst, int kStep>
HEXAD_INLINE void multiply_bytes(const float* q, int64_t q_step, int64_t dims,
                                 const int8_t* const* k, Ahead& next, reg* s) {
  constexpr int kParts = kLanes / kRegLanes;
  if constexpr (kStep < kParts) {
    reg other[R * J];
    multiply_bytes<R, J, kFirst, 2 * kStep>(q, q_step, dims, k, next, s);
    multiply_bytes<R, J, kFirst + kStep, 2 * kStep>(q, q_step, dims, k, next, other);
#pragma GCC unroll 16
    for (int i = 0; i < R * J; ++i) s[i] = s[i] + other[i];
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * J; ++i) s[i] = set1_reg(0.f);
  const auto add = [&](int64_t d, const reg* x) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const reg y = load_reg(q + r * q_step + d);
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) s[r * J + j] = fma(y, x[j], s[r * J + j]);
    }
  };
  const auto whole = [&](int64_t d) __attribute__((always_inline)) {
    reg x[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) x[j] = load_reg(k[j] + d);
    add(d, x);
  };
  // Steps that read as much as is asked for at a time.
  constexpr int kTurns = std::max<int>(1, Ahead::kStep / (J * kRegLanes));
  int64_t d = kFirst * kRegLanes;
  for (; d + (kTurns - 1) * kLanes + kRegLanes <= dims; d += kTurns * kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kTurns; ++i) whole(d + i * kLanes);
    next.next();
  }
  for (; d + kRegLanes <= dims; d += kLanes) whole(d);
  if (d < dims) {
    reg x[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) x[j] = load_reg_part(k[j] + d, dims - d);
    add(d, x);
  }
}

// p[r * kTile + key] = <q_r, k_key> for the keys of a tile that have any of [from, upto).
template <int R>
void score_bytes(const float* q, int64_t q_step, int64_t dims, const int8_t* const* k, Ahead& next,
                 int from, int upto, float* p) {
  constexpr int J = kRegLanes / (R > 4 ? 8 : R > 2 ? 4 : R);
  for (int at = from / J * J; at < upto; at += J) {
    reg s[kRegLanes];
    multiply_bytes<R, J, 0, 1>(q, q_step, dims, k + at, next, s);
#pragma GCC unroll 16
    for (int i = R * J; i < kRegLanes; ++i) s[i] = set1_reg(0.f);
    float sums[kRegLanes];
    store_reg(sums, sums_across(s));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) memcpy(p + r * kTile + at, sums + r * J, J * sizeof(float));
  }
}

}  // namespace
}  // namespace hexad
