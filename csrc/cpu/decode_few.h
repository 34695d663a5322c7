// The products of cpu/decode_amx.h for few query heads, on the vectors: a tile of one to four rows
// costs as much as of sixteen. Sums go as the tiles' do: over 32 numbers the even ones are a chain
// from zero, the odd ones another, and their sum is added; subnormals count as zero.
#pragma once

#include "cpu/attend_tiles.h"
#include "cpu/decode_tile.h"

#if HEXAD_TILES

namespace hexad {
namespace {

HEXAD_INLINE reg even_half(reg words) {
  return (reg)_mm512_slli_epi32((__m512i)words, 16);
}
HEXAD_INLINE reg odd_half(reg words) {
  return (reg)_mm512_and_si512((__m512i)words, _mm512_set1_epi32(int(0xffff0000)));
}

// s[r * kTile + key] for the groups of sixteen keys that have any of [from, upto); q is padded with
// zeros to whole steps.
template <int R>
void score_few(const float* q, int64_t q_step, int64_t dims, const bf16* const* k, Ahead& next,
               int from, int upto, float* s) {
  for (int g = from / kTileSide * kTileSide; g < upto; g += kTileSide) {
    reg sum[R];
    for (int r = 0; r < R; ++r) sum[r] = set1_reg(0.f);
    for (int64_t d = 0; d < dims; d += kStepWidth) {
      reg square[kTileSide];
      if (dims - d >= kStepWidth) {
        load_turned(reinterpret_cast<const void* const*>(k + g), 2 * d, square);
      } else {
        for (int i = 0; i < kTileSide; ++i) square[i] = (reg)load_32(k[g + i] + d, dims - d);
        transpose(square);
      }
      reg even[R], odd[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) even[r] = odd[r] = set1_reg(0.f);
#pragma GCC unroll 16
      for (int i = 0; i < kTilePairs; ++i) {
        const reg x = even_half(square[i]), y = odd_half(square[i]);
        if (i % 4 == 3) next.next();
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          even[r] = fma(set1_reg(q[r * q_step + d + 2 * i]), x, even[r]);
          odd[r] = fma(set1_reg(q[r * q_step + d + 2 * i + 1]), y, odd[r]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r] = sum[r] + (even[r] + odd[r]);
    }
    for (int r = 0; r < R; ++r) store_reg(s + r * kTileKeys + g, sum[r]);
  }
}

// out[r][dimension] += the weighted values of keys [from, upto); `part`: only so many of the last
// sixteen dimensions are there.
template <int R, int NV, bool kPart>
void weigh_few_strip(const float* p, const bf16* const* v, Ahead& next, int64_t at, int64_t part,
                     int from, int upto, float* out, int64_t out_step) {
  const auto take = [&](int j, int n) __attribute__((always_inline)) {
    const bf16* x = v[j] + at + n * kLanes;
    return kPart ? load_part(x, part) : load(x);
  };
  for (int step = from / kStepWidth * kStepWidth; step < upto; step += kStepWidth) {
    reg sum[2][R][NV];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) sum[h][r][n] = set1_reg(0.f);
    const auto add = [&](int j, int h) __attribute__((always_inline)) {
      next.ask(NV * 32);
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) {
        const reg x = take(j, n);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          sum[h][r][n] = fma(set1_reg(p[r * kTileKeys + j]), x, sum[h][r][n]);
      }
    };
    int j = std::max(step, from);
    const int end = std::min(step + kStepWidth, upto);
    if (j % 2) add(j++, 1);
    for (; j + 1 < end; j += 2) add(j, 0), add(j + 1, 1);
    if (j < end) add(j, 0);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) {
        float* to = out + r * out_step + at + n * kLanes;
        store_reg(to, load_reg(to) + (sum[0][r][n] + sum[1][r][n]));
      }
  }
}

template <int R>
void weigh_few(const float* p, const bf16* const* v, Ahead& next, int64_t dims, int from, int upto,
               float* out, int64_t out_step) {
  constexpr int NV = R <= 2 ? 4 : 2;
  int64_t at = 0;
  for (; at + NV * kLanes <= dims; at += NV * kLanes)
    weigh_few_strip<R, NV, false>(p, v, next, at, 0, from, upto, out, out_step);
  for (; at + kLanes <= dims; at += kLanes)
    weigh_few_strip<R, 1, false>(p, v, next, at, 0, from, upto, out, out_step);
  if (at < dims) weigh_few_strip<R, 1, true>(p, v, next, at, dims - at, from, upto, out, out_step);
}

}  // namespace
}  // namespace hexad
#endif
