// The machine's own limits, for benchmarks: what the vector units and the memory give at most.
#include "op/roofline.h"

#include <algorithm>

#include "cpu/amx.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

constexpr int kChains = 12;  // enough to hide an fma's latency, few enough for sixteen registers

float fma_rounds(int64_t rounds) {
  reg acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = set1_reg(float(i));
  const reg a = set1_reg(0.999f), b = set1_reg(0.001f);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], a, b);
  float lanes[kRegLanes];
  for (int i = 1; i < kChains; ++i) acc[0] = acc[0] + acc[i];
  store_reg(lanes, acc[0]);
  return lanes[0];
}

// kDotRound: operations of a round.
#if HEXAD_TILES
constexpr int64_t kDotRound = 4 * 2 * 16 * 16 * 32;

float dot_rounds(int64_t rounds) {
  const Tiles tiles;
  alignas(64) bf16 ones[16 * 32];
  alignas(64) float sums[16 * 16];
  for (bf16& x : ones) x = to_bf16(1.f);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  return sums[0];
}
#elif HEXAD_PAIRS
constexpr int64_t kDotRound = kChains * 4 * kLanes;

float dot_rounds(int64_t rounds) {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(float(i));
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00), b = (__m512bh)_mm512_set1_epi16(0x3a00);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  __m512 total = acc[0];
  for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, acc[i]);
  return _mm512_reduce_add_ps(total);
}
#endif

// Four streams side by side, each asked for ahead: one alone leaves the memory waiting.
float read_range(const float* p, int64_t n) {
  constexpr int64_t kStreams = 4, kAhead = 1024;
  const int64_t each = n / kStreams / kLanes * kLanes;
  reg acc[kStreams] = {set1_reg(0.f), set1_reg(0.f), set1_reg(0.f), set1_reg(0.f)};
  for (int64_t i = 0; i < each; i += kLanes)
#pragma GCC unroll 4
    for (int64_t s = 0; s < kStreams; ++s) {
      const float* at = p + s * each + i;
      __builtin_prefetch(at + kAhead);
#pragma GCC unroll 4
      for (int j = 0; j < kLanes; j += kRegLanes) acc[s] = acc[s] + load_reg(at + j);
    }
  float lanes[kRegLanes];
  store_reg(lanes, acc[0] + acc[1] + acc[2] + acc[3]);
  return lanes[0];
}

}  // namespace

namespace HEXAD_ISA {

void roofline(const RooflineArgs& a) {
  *a.flops = 0;
  if (a.kind <= 1) {
    parallel_for(a.threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
#if HEXAD_PAIRS
        if (a.kind == 1) {
          a.sink[t] = dot_rounds(a.count);
          continue;
        }
#endif
        a.sink[t] = fma_rounds(a.count);
      }
    });
    int64_t round = kChains * 2 * kRegLanes;
#if HEXAD_PAIRS
    if (a.kind == 1) round = kDotRound;
#endif
    *a.flops = double(a.threads) * double(a.count) * double(round);
    return;
  }
  const int64_t grain = (a.count / a.threads + kLanes) / kLanes * kLanes;
  parallel_for(a.count, grain, [&](int64_t begin, int64_t end) {
    if (a.kind == 2) {
      a.sink[begin / grain] = read_range(a.source + begin, end - begin);
    } else {
      std::copy(a.source + begin, a.source + end, a.target + begin);
    }
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
