// linear's products of bfloat16 with bfloat16 in tiles (amx.h), for any number of rows.
//
// Order of sums, the same for one row and many, packed or not: products of 32 inputs, counted from
// input 0, are added up one after another, from zero. A packed panel is a column of B tiles where
// it lies, rows of x are A tiles where they lie. A and B may trade places.
#pragma once

#include "cpu/amx.h"
#include "cpu/linear_items.h"

#if HEXAD_TILES

namespace hexad {
namespace {

constexpr int kStep = 2 * kTilePairs;               // inputs of a product of tiles
constexpr int kTileWords = kTileSide * kTilePairs;  // of 4 bytes
constexpr int kCut = 512;                           // inputs that many rows sum at a time
constexpr int kCutWords = kCut / kStep * kTileWords;
constexpr int kSquare = 2 * kTileSide;  // rows and outputs of a unit of work among many rows
constexpr int kFewRows = kSquare;       // summed over all inputs without a stop
constexpr int kManyRows = 512, kManyPanels = 8;

// Lines to ask for while a cut is summed, line t of each row at step t.
struct Ahead {
  const char* at = nullptr;
  int64_t stride = 0;
  int rows = 0;

  HEXAD_INLINE void ask(int64_t t) const {
    for (int r = 0; r < rows; ++r) __builtin_prefetch(at + r * stride + t * 64, 0, 2);
  }
};

// The last inputs of a cut, fewer than 32, as tiles filled up with zeros.
HEXAD_INLINE void copy_rest(const char* from, int64_t stride, int rows, int64_t bytes, void* to) {
  const uint64_t live = (uint64_t(1) << bytes) - 1;
  for (int r = 0; r < rows; ++r)
    _mm512_store_si512(static_cast<char*>(to) + r * 64,
                       _mm512_maskz_loadu_epi8(live, from + r * stride));
}

// R tiles of A, 16 rows `stride` bytes apart, by C of B.
template <int R, int C>
HEXAD_INLINE void multiply(const char* x, int64_t stride, int64_t down, const char* const* w,
                           int64_t at) {
  _tile_loadd(4, x, stride);
  if constexpr (R == 2) {
    _tile_loadd(5, x + down, stride);
    _tile_loadd(6, w[0] + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (C > 1) {
      _tile_loadd(7, w[1] + at, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  } else {
    _tile_loadd(5, w[0] + at, 64);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (C > 1) {
      _tile_loadd(6, w[1] + at, 64);
      _tile_dpbf16ps(1, 4, 6);
    }
    if constexpr (C > 2) {
      _tile_loadd(7, w[2] + at, 64);
      _tile_dpbf16ps(2, 4, 7);
    }
    if constexpr (C > 3) {
      _tile_loadd(5, w[3] + at, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
}

// R * C tiles of sums in rows of 64 / R floats.
template <int R, int C>
HEXAD_INLINE void begin_sums(const float* sums, bool first) {
  constexpr int64_t width = 64 / R, bytes = width * 4;
  if (first) {
    _tile_zero(0);
    if (C > 1) _tile_zero(1);
    if (R > 1 || C > 2) _tile_zero(2);
    if (R * C > 3) _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums, bytes);
  if (C > 1) _tile_loadd(1, sums + 16, bytes);
  if (R > 1 || C > 2) _tile_loadd(2, sums + (R > 1 ? 16 * width : 32), bytes);
  if (R * C > 3) _tile_loadd(3, sums + (R > 1 ? 16 * width + 16 : 48), bytes);
}
template <int R, int C>
HEXAD_INLINE void end_sums(float* sums) {
  constexpr int64_t width = 64 / R, bytes = width * 4;
  _tile_stored(0, sums, bytes);
  if (C > 1) _tile_stored(1, sums + 16, bytes);
  if (R > 1 || C > 2) _tile_stored(2, sums + (R > 1 ? 16 * width : 32), bytes);
  if (R * C > 3) _tile_stored(3, sums + (R > 1 ? 16 * width + 16 : 48), bytes);
}

// `rows` rows of x, at most 16 R, by C panels over n inputs, of which the panels hold whole tiles
// where kWhole; `sums` has rows of 64 / R floats. Where kStream the panels come from memory, 4 KB
// of work ahead.
template <int R, int C, bool kStream, bool kWhole>
void unit(const bf16* x, int64_t x_stride, int rows, const int32_t* const* panels, int64_t n,
          bool first, float* sums, const Ahead& a, const Ahead& b) {
  const char* left = reinterpret_cast<const char*>(x);
  const int64_t stride = x_stride * 2, down = 16 * stride;
  const char* w[C];
  for (int c = 0; c < C; ++c) w[c] = reinterpret_cast<const char*>(panels[c]);
  begin_sums<R, C>(sums, first);
  const int64_t whole = n / kStep;
  for (int64_t t = 0; t < whole; ++t) {
    if constexpr (kStream) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 16
        for (int i = 0; i < 1024; i += 64) __builtin_prefetch(w[c] + t * 1024 + i + 4096 / C);
    } else {
      a.ask(t);
      b.ask(t);
    }
    multiply<R, C>(left + t * 64, stride, down, w, t * 1024);
  }
  if (const int64_t rest = n % kStep) {
    alignas(64) char tail[R][1024], tails[C][1024];
    copy_rest(left + whole * 64, stride, rows, rest * 2, tail);
    if constexpr (!kWhole) {
      const int words = int(rest + 1) / 2;
      for (int c = 0; c < C; ++c) {
        copy_rest(w[c] + whole * 1024, 64, words, 64, tails[c]);
        for (int i = words; i < 16; ++i)
          _mm512_store_si512(tails[c] + i * 64, _mm512_setzero_si512());
        w[c] = tails[c];
      }
    }
    settle();
    multiply<R, C>(tail[0], 64, 1024, w, kWhole ? whole * 1024 : 0);
  }
  end_sums<R, C>(sums);
}

// Tiles of a unit's A and C, where it has `rows` rows.
template <int R>
struct UnitTiles : Tiles {
  explicit UnitTiles(int rows)
      : Tiles(rows == 16 * R ? 0
              : R == 1       ? 0b11111
                             : 0b101100,
              rows - 16 * (R - 1)) {}
};

// Up to 32 rows by an item's panels of a packed weight, end to end.
template <int R>
void sum_few(const LinearArgs& a, const Group& group, float* sums) {
  const int32_t* w[kPanels];
  for (int p = 0; p < group.panels; ++p)
    w[p] = static_cast<const int32_t*>(a.weight) + group.row[p] / kPanel * a.weight_stride;
  const bf16* x = static_cast<const bf16*>(a.x);
  const int rows = int(a.rows);
  const UnitTiles<R> tiles(rows);
  if constexpr (R == 1) {
    if (group.panels == 4)
      unit<1, 4, true, false>(x, a.x_stride, rows, w, a.inputs, true, sums, {}, {});
    if (group.panels == 3)
      unit<1, 3, true, false>(x, a.x_stride, rows, w, a.inputs, true, sums, {}, {});
  }
  if (group.panels == 2)
    unit<R, 2, true, false>(x, a.x_stride, rows, w, a.inputs, true, sums, {}, {});
  if (group.panels == 1)
    unit<R, 1, true, false>(x, a.x_stride, rows, w, a.inputs, true, sums, {}, {});
}

// What many rows sum after the panels at hand: two panels from input k on. Each unit asks for its
// share.
struct Next {
  int panel[2];
  int64_t k;
  int unit, units;
};

// Many rows: every two panels by every 32 rows, a cut of the inputs at a time. weights(k, n, w)
// gives the panels at inputs k to k + n, ask(next) the lines to fetch into the second-level cache.
template <bool kWhole, class Weights, class Ask>
void sum_many(const LinearArgs& a, const GroupOf<kManyPanels>& group, int64_t first, int64_t rows,
              const Weights& weights, const Ask& ask) {
  constexpr int kPairs = kManyPanels / 2;
  alignas(64) float sums[kManyRows / kSquare * kPairs][kSquare * kSquare];
  const bf16* x = static_cast<const bf16*>(a.x) + first * a.x_stride;
  const int units = int((rows + kSquare - 1) / kSquare);
  // A gate and its up are a pair.
  const int pairs = (group.panels + 1) / 2, apart = gated(a) ? pairs : 1, step = gated(a) ? 1 : 2;
  const auto second = [&](int p) { return std::min(p + apart, group.panels - 1); };
  for (int64_t k = 0; k == 0 || k < a.inputs; k += kCut) {
    const int64_t n = std::min<int64_t>(kCut, a.inputs - k);
    const int64_t after = k + kCut < a.inputs ? k + kCut : 0;
    const int32_t* w[kManyPanels];
    weights(k, n, w);
    for (int pair = 0; pair < pairs; ++pair) {
      const int p = pair * step, q = second(p);
      const int32_t* two[2] = {w[p], w[q]};
      const GroupOf<2> part{
          p == q ? 1 : 2, {group.row[p], group.row[q]}, {group.lanes[p], group.lanes[q]}};
      const int then = pair + 1 < pairs ? p + step : 0;
      Next next{{then, second(then)}, then ? k : after, 0, units};
      const auto run = [&](auto tall, int u) __attribute__((always_inline)) {
        constexpr int R = decltype(tall)::value;
        const int height = int(std::min<int64_t>(kSquare, rows - u * kSquare));
        const bf16* from = x + u * kSquare * a.x_stride;
        float* to = sums[u * kPairs + pair];
        const int begin = height * pair / pairs, end = height * (pair + 1) / pairs;
        const Ahead in{reinterpret_cast<const char*>(from + after + begin * a.x_stride),
                       a.x_stride * 2, end - begin};
        next.unit = u;
        if (part.panels == 2)
          unit<R, 2, false, kWhole>(from + k, a.x_stride, height, two, n, k == 0, to, in,
                                    ask(next));
        else
          unit<R, 1, false, kWhole>(from + k, a.x_stride, height, two, n, k == 0, to, in,
                                    ask(next));
        if (!after) finish<bf16>(a, part, first + u * kSquare, height, to, 64 / R);
      };
      const int full = int(rows / kSquare), rest = int(rows % kSquare);
      if (full) {
        const UnitTiles<2> tiles(kSquare);
        for (int u = 0; u < full; ++u) run(std::integral_constant<int, 2>{}, u);
      }
      if (rest > kTileSide) {
        const UnitTiles<2> tiles(rest);
        run(std::integral_constant<int, 2>{}, full);
      } else if (rest) {
        const UnitTiles<1> tiles(rest);
        run(std::integral_constant<int, 1>{}, full);
      }
    }
  }
}

}  // namespace
}  // namespace hexad
#endif
