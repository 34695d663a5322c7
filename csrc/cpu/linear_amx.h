// linear's products of bfloat16 with bfloat16 in tiles (amx.h), for any number of rows.
//
// Order of sums, the same for one row and many, packed or not: products of 32 inputs, counted from
// input 0, are added up one after another, from zero. A packed panel is a column of B tiles where
// it lies. A and B may trade places.
#pragma once

#include "cpu/amx.h"
#include "cpu/linear_items.h"

#if HEXAD_TILES

namespace hexad {
namespace {

constexpr int kStep = 2 * kTilePairs;               // inputs of a product of tiles
constexpr int kTileWords = kTileSide * kTilePairs;  // of 4 bytes
constexpr int kSquare = 2 * kTileSide;              // rows and outputs of a unit of work
constexpr int kCut = 384;                           // inputs that a unit sums at a time, at most
constexpr int kCutSteps = kCut / kStep;
constexpr int kCutWords = kCutSteps * kTileWords;
constexpr int kManyRows = 512, kManyPanels = 16;  // of an item among many rows

// n inputs, or 32 if there are more; zeros after them.
HEXAD_INLINE __m512i load_inputs(const bf16* p, int64_t n) {
  return _mm512_maskz_loadu_epi16(n >= kStep ? ~0u : (1u << n) - 1, p);
}

// 16 rows, of which `lanes` exist, as a tile B: pairs of their n inputs, zeros after them.
inline void pair_tile(const bf16* rows, int64_t stride, int lanes, int64_t n, int32_t* to) {
  alignas(64) bf16 whole[kTileSide][kStep];
  if (lanes < kTileSide || n < kStep) {
    for (int i = 0; i < kTileSide; ++i)
      _mm512_store_si512(whole[i], load_inputs(rows + std::min(i, lanes - 1) * stride, n));
    rows = whole[0], stride = kStep;
  }
  // Quarters of four rows come together as they are loaded: half the shuffles of a square's.
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const bf16* at = rows + i * stride + quarter * 8;
      const auto part = [&](int j) __attribute__((always_inline)) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 4 * j * stride));
      };
      v[i] = _mm512_castsi128_si512(part(0));
      v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x00f0, part(1));
      v[i] = _mm512_mask_broadcast_i32x4(v[i], 0x0f00, part(2));
      v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xf000, part(3));
    }
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    int32_t* words = to + quarter * 4 * kPanel;
    _mm512_store_si512(words, _mm512_unpacklo_epi64(a, c));
    _mm512_store_si512(words + kPanel, _mm512_unpackhi_epi64(a, c));
    _mm512_store_si512(words + 2 * kPanel, _mm512_unpacklo_epi64(b, d));
    _mm512_store_si512(words + 3 * kPanel, _mm512_unpackhi_epi64(b, d));
  }
}

// R tiles of A, `down` bytes apart, their rows `stride`, by C of B at w[c] + at. Among many rows B
// only passes through the first-level cache, where A is to stay.
template <int R, int C>
HEXAD_INLINE void multiply(const char* x, int64_t stride, int64_t down, const char* const* w,
                           int64_t at) {
  _tile_loadd(4, x, stride);
  if constexpr (R == 2) {
    _tile_stream_loadd(6, w[0] + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, x + down, stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (C > 1) {
      _tile_stream_loadd(7, w[1] + at, 64);
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

// Floats from one row of a unit's sums to the next.
template <int C>
constexpr int kSumWidth = C > 2 ? 4 * kTileSide : 2 * kTileSide;

template <int R, int C>
HEXAD_INLINE void begin_sums(const float* sums, bool first) {
  constexpr int64_t bytes = kSumWidth<C> * 4;
  if (first) {
    _tile_zero(0);
    if (C > 1) _tile_zero(1);
    if (R > 1 || C > 2) _tile_zero(2);
    if (R * C > 3) _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums, bytes);
  if (C > 1) _tile_loadd(1, sums + 16, bytes);
  if (R > 1 || C > 2) _tile_loadd(2, sums + (R > 1 ? 16 * kSumWidth<C> : 32), bytes);
  if (R * C > 3) _tile_loadd(3, sums + (R > 1 ? 16 * kSumWidth<C> + 16 : 48), bytes);
}
template <int R, int C>
HEXAD_INLINE void end_sums(float* sums) {
  constexpr int64_t bytes = kSumWidth<C> * 4;
  _tile_stored(0, sums, bytes);
  if (C > 1) _tile_stored(1, sums + 16, bytes);
  if (R > 1 || C > 2) _tile_stored(2, sums + (R > 1 ? 16 * kSumWidth<C> : 32), bytes);
  if (R * C > 3) _tile_stored(3, sums + (R > 1 ? 16 * kSumWidth<C> + 16 : 48), bytes);
}

// Replaces the last tiles of C panels, of `rest` inputs, by copies filled up with zeros.
template <int C>
HEXAD_INLINE void end_panels(const char** w, int64_t at, int64_t rest, char (*tails)[1024]) {
  for (int c = 0; c < C; ++c) {
    for (int i = 0; i < kTileSide; ++i)
      _mm512_store_si512(tails[c] + i * 64, i < (rest + 1) / 2
                                                ? _mm512_loadu_si512(w[c] + at + i * 64)
                                                : _mm512_setzero_si512());
    w[c] = tails[c];
  }
}

// `rows` rows, at most 16 R, where they lie, by C panels over n inputs. The panels hold whole tiles
// where kWhole; side(t) runs beside step t.
template <int R, int C, bool kWhole, class Side>
void sum_rows(const bf16* x, int64_t x_stride, int rows, const int32_t* const* panels, int64_t n,
              bool first, float* sums, const Side& side) {
  const char* left = reinterpret_cast<const char*>(x);
  const int64_t stride = x_stride * 2, whole = n / kStep;
  const char* w[C];
  for (int c = 0; c < C; ++c) w[c] = reinterpret_cast<const char*>(panels[c]);
  begin_sums<R, C>(sums, first);
  for (int64_t t = 0; t < whole; ++t) {
    side(t);
    multiply<R, C>(left + t * 64, stride, 16 * stride, w, t * 1024);
  }
  if (const int64_t rest = n % kStep) {
    alignas(64) char tail[R * 1024], tails[C][1024];
    for (int r = 0; r < rows; ++r)
      _mm512_store_si512(tail + r * 64, load_inputs(x + r * x_stride + whole * kStep, rest));
    if (!kWhole) end_panels<C>(w, whole * 1024, rest, tails);
    settle();
    multiply<R, C>(tail, 64, 1024, w, kWhole ? whole * 1024 : 0);
  }
  end_sums<R, C>(sums);
}

// Tiles of A and C for `rows` rows, more than 16 (R - 1).
template <int R>
struct RowTiles : Tiles {
  explicit RowTiles(int rows)
      : Tiles(rows == 16 * R ? 0
              : R == 1       ? 0b11111
                             : 0b101100,
              rows - 16 * (R - 1)) {}
};

// Up to 16 R rows by an item's panels of a packed weight, read end to end.
template <int R>
void sum_few(const LinearArgs& a, const Group& group, float* sums) {
  const int32_t* w[kPanels];
  for (int p = 0; p < group.panels; ++p)
    w[p] = static_cast<const int32_t*>(a.weight) + group.row[p] / kPanel * a.weight_stride;
  const RowTiles<R> tiles(int(a.rows));
  const auto sum = [&](auto panels) {
    constexpr int C = decltype(panels)::value;
    // Asks for the lines that come 4 KB of work later.
    const auto fetch = [&](int64_t t) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 16
        for (int i = 0; i < 1024; i += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(w[c]) + t * 1024 + i + 4096 / C);
    };
    sum_rows<R, C, false>(static_cast<const bf16*>(a.x), a.x_stride, int(a.rows), w, a.inputs, true,
                          sums, fetch);
  };
  if constexpr (R == 1) {
    if (group.panels == 4) return sum(std::integral_constant<int, 4>{});
    if (group.panels == 3) return sum(std::integral_constant<int, 3>{});
  }
  group.panels == 2 ? sum(std::integral_constant<int, 2>{}) : sum(std::integral_constant<int, 1>{});
}

// Work spread over steps: `total` pieces over `steps`.
struct Spread {
  int64_t total, steps, credit = 0, done = 0;

  template <class Piece>
  HEXAD_INLINE void step(const Piece& piece) {
    for (credit += total; credit >= steps; credit -= steps) piece(done++);
  }
};

// Many rows: every 32 rows by every two panels, a cut of the inputs at a time. Weights has
//   at(p, k)         panel p from input k on, prepared
//   pieces           what prepares a cut of all panels
//   prepare(k, n, i) does piece i for the cut of n inputs at k
// The next cut's panels are prepared, and the next rows asked for, beside a unit's products. x is
// read where it lies, but for rows that would share few sets of the cache.
template <bool kWhole, class Weights>
void sum_many(const LinearArgs& a, const GroupOf<kManyPanels>& group, int64_t first, int64_t rows,
              Weights& weights) {
  constexpr int kPairs = kManyPanels / 2;
  alignas(64) float sums[kManyRows / kSquare * kPairs][kSquare * kSquare];
  const int units = int((rows + kSquare - 1) / kSquare),
            rest_rows = int(rows - (units - 1) * kSquare);
  // A gate and its up are a pair.
  const int pairs = (group.panels + 1) / 2, apart = gated(a) ? pairs : 1, step = gated(a) ? 1 : 2;
  const int64_t cuts = std::max<int64_t>(1, (a.inputs + kCut - 1) / kCut);
  const int64_t cut = (a.inputs + cuts * kStep - 1) / (cuts * kStep) * kStep;
  const auto inputs = [&](int64_t k) { return std::max<int64_t>(0, std::min(cut, a.inputs - k)); };
  for (int i = 0; i < weights.pieces; ++i) weights.prepare(0, inputs(0), i);
  for (int64_t k = 0, c = 0; c < cuts; ++c, k += cut) {
    const int64_t n = inputs(k), whole = n / kStep, rest = n % kStep, then = inputs(k + cut);
    Spread prepared{then ? weights.pieces : 0, std::max<int64_t>(1, units * pairs * whole)};
    const auto row = [&](auto tall, int u, int height) __attribute__((always_inline)) {
      constexpr int R = decltype(tall)::value;
      const bf16* x = static_cast<const bf16*>(a.x) + (first + u * kSquare) * a.x_stride + k;
      const char* left = reinterpret_cast<const char*>(x);
      const bf16* ahead =
          u + 1 < units ? x + kSquare * a.x_stride : x + cut - u * kSquare * a.x_stride;
      const int next_rows = u + 1 < units - 1 ? kSquare : rest_rows;
      int64_t stride = a.x_stride * 2, down = 16 * stride, along = 64;
      alignas(64) char copy[kCutSteps * kSquare * 64], tail[kSquare * 64];
      if (pairs > 1 && stride % 4096 == 0) {
        for (int r = 0; r < height; ++r)
          for (int64_t t = 0; t < whole; ++t)
            _mm512_store_si512(copy + (t * kSquare + r) * 64,
                               _mm512_loadu_si512(left + r * stride + t * 64));
        left = copy, stride = 64, down = 1024, along = kSquare * 64;
      }
      if (rest)
        for (int r = 0; r < height; ++r)
          _mm512_store_si512(tail + r * 64, load_inputs(x + r * a.x_stride + whole * kStep, rest));
      for (int pair = 0; pair < pairs; ++pair) {
        const int p = pair * step, q = std::min(p + apart, group.panels - 1);
        float* to = sums[u * kPairs + pair];
        const int begin = next_rows * pair / pairs, end = next_rows * (pair + 1) / pairs;
        const auto sum = [&](auto wide) __attribute__((always_inline)) {
          constexpr int C = decltype(wide)::value;
          const char* w[2] = {reinterpret_cast<const char*>(weights.at(p, k)),
                              reinterpret_cast<const char*>(weights.at(q, k))};
          settle();
          begin_sums<R, C>(to, k == 0);
          for (int64_t t = 0; t < whole; ++t) {
            multiply<R, C>(left + t * along, stride, down, w, t * 1024);
            for (int r = begin; r < end; ++r)
              __builtin_prefetch(ahead + r * a.x_stride + t * kStep, 0, 2);
            prepared.step([&](int64_t i) { weights.prepare(k + cut, then, int(i)); });
          }
          if (rest) {
            alignas(64) char tails[C][1024];
            if (!kWhole) end_panels<C>(w, whole * 1024, rest, tails);
            settle();
            multiply<R, C>(tail, 64, 1024, w, kWhole ? whole * 1024 : 0);
          }
          end_sums<R, C>(to);
        };
        p == q ? sum(std::integral_constant<int, 1>{}) : sum(std::integral_constant<int, 2>{});
        if (c + 1 < cuts) continue;
        const GroupOf<2> part{
            p == q ? 1 : 2, {group.row[p], group.row[q]}, {group.lanes[p], group.lanes[q]}};
        finish<bf16>(a, part, first + u * kSquare, height, to, kSquare);
      }
    };
    const int full = int(rows / kSquare), height = int(rows % kSquare);
    if (full) {
      const RowTiles<2> tiles(kSquare);
      for (int u = 0; u < full; ++u) row(std::integral_constant<int, 2>{}, u, kSquare);
    }
    if (height > kTileSide) {
      const RowTiles<2> tiles(height);
      row(std::integral_constant<int, 2>{}, full, height);
    } else if (height) {
      const RowTiles<1> tiles(height);
      row(std::integral_constant<int, 1>{}, full, height);
    }
  }
}

// Rows of an item: fewer where items would be fewer than twice the threads.
inline int64_t many_rows(const LinearArgs& a) {
  const int64_t across = (a.outputs + kManyPanels * kPanel - 1) / (kManyPanels * kPanel);
  int64_t tall = kManyRows;
  while (tall > 4 * kSquare && (a.rows + tall - 1) / tall * across < 2 * parallel_threads())
    tall /= 2;
  return tall;
}

}  // namespace
}  // namespace hexad
#endif
