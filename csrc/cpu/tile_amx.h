// Squares of 32 x 32 for the matrix unit (level amx), four tiles each: c += a b, c in float32 and
// kept as its four tiles, 1024 floats: rows 0 to 15 of columns 0 to 15, then of 16 to 31, then the
// rows below. The reduction is in steps of 32, from k = 0 up.
#pragma once

#include "cpu/amx.h"
#include "cpu/tile_pack.h"

#if HEXAD_TILES
namespace hexad {
namespace {

constexpr int64_t kSide = 32;
constexpr int64_t kSquare = kSide * kSide;

// Where the 2 tiles of a step of a factor stand, in bytes: rows `row` apart, the second tile `half`
// after the first, the next step `step` after this one.
struct Tiled {
  const char* at;
  int64_t row, half, step;
  HEXAD_INLINE Tiled from(int64_t k) const { return {at + k * step, row, half, step}; }
};

// A right factor from panels of 32 columns: a row of pairs of k has 32 numbers of 4 bytes.
HEXAD_INLINE Tiled panel_tiles(const float* p) {
  return {reinterpret_cast<const char*>(p), 128, 64, 16 * 128};
}

HEXAD_INLINE void load_square(const float* c) {
  _tile_loadd(0, c, 64);
  _tile_loadd(1, c + 256, 64);
  _tile_loadd(2, c + 512, 64);
  _tile_loadd(3, c + 768, 64);
}
HEXAD_INLINE void store_square(float* c) {
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 256, 64);
  _tile_stored(2, c + 512, 64);
  _tile_stored(3, c + 768, 64);
}
HEXAD_INLINE void clear_square() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
// Every column is `column`, of 32 rows of 16 times their number.
HEXAD_INLINE void fill_square(const float* column) {
  _tile_loadd(0, column, 64);
  _tile_loadd(1, column, 64);
  _tile_loadd(2, column + 256, 64);
  _tile_loadd(3, column + 256, 64);
}
HEXAD_INLINE void multiply_square(const Tiled& a, const Tiled& b, int64_t steps) {
  const char *x = a.at, *y = b.at;
  for (int64_t k = 0; k < steps; ++k, x += a.step, y += b.step) {
    _tile_loadd(6, y, b.row);
    _tile_loadd(4, x, a.row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, y + b.half, b.row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + a.half, a.row);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}
// c += a b
HEXAD_INLINE void add_square(float* c, const Tiled& a, const Tiled& b, int64_t steps) {
  load_square(c);
  multiply_square(a, b, steps);
  store_square(c);
}

// Rows as a left factor, where they stand if they can be read there; `elements` is the reduction.
inline Tiled pack_left(float* to, const bf16* p, int64_t row_step, int64_t n, int64_t elements) {
  if (elements % kSide == 0 && n % kSide == 0)
    return {reinterpret_cast<const char*>(p), row_step * 2, row_step * 32, 64};
  const int64_t units = round_up(elements, kSide) / 2;
  for (int64_t i = 0; i < round_up(n, kSide); ++i)
    for (int64_t k = 0; k < units; k += kLanes)
      store(to + i * units + k,
            i < n ? row_units(Pairs{}, p + i * row_step + 2 * k, elements - 2 * k) : zero());
  return {reinterpret_cast<const char*>(to), units * 4, units * 64, 64};
}

// Rows as a right factor whose columns they are: panels of 32 rows, round_up(elements, 32) * 16
// floats each.
inline void pack_right_turned(float* to, const bf16* p, int64_t row_step, int64_t n,
                              int64_t elements) {
  const int64_t units = round_up(elements, kSide) / 2;
  for (int64_t j = 0; j < round_up(n, kSide); j += kLanes)
    for (int64_t k = 0; k < units; k += kLanes) {
      vf square[kLanes];
      const bf16* row = p + j * row_step + 2 * k;
      if (j + kLanes <= n && 2 * k + kSide <= elements) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load<vf>(row + i * row_step);
      } else {
        for (int i = 0; i < kLanes; ++i)
          square[i] = j + i < n ? row_units(Pairs{}, row + i * row_step, elements - 2 * k) : zero();
      }
      transpose(square);
      float* column = to + j / kSide * units * kSide + k * kSide + j % kSide;
      for (int i = 0; i < kLanes; ++i) store(column + i * kSide, square[i]);
    }
}

// Rows as a right factor over which the sum goes: panels of 32 elements, `room` * 16 floats each.
// Of each 32 rows, i and 16 + i are a pair.
inline void pack_right(float* to, const bf16* p, int64_t row_step, int64_t n, int64_t room,
                       int64_t elements) {
  for (int64_t d = 0; d < round_up(elements, kSide); d += kLanes) {
    float* column = to + d / kSide * room * kLanes + d % kSide;
    for (int64_t j = 0; j < round_up(n, kSide); j += kSide)
      for (int64_t i = j; i < j + kLanes; ++i, column += kSide) {
        const bf16* row = p + i * row_step + d;
        const bool there = i < n && d < elements;
        store(column,
              there ? across_units(Pairs{}, row, i + kLanes < n ? row + kLanes * row_step : nullptr,
                                   elements - d)
                    : zero());
      }
  }
}

// Rows as a left factor whose columns they are, in tiles of 16 elements by 32 rows (pairs 2i, 2i +
// 1): those of an element's rows follow each other, `room` / 32 of them.
inline void pack_left_turned(float* to, const bf16* p, int64_t row_step, int64_t n, int64_t room,
                             int64_t elements) {
  const int64_t tiles = room / kSide * 256;
  alignas(64) bf16 rest[kSide * kSide];
  for (int64_t j = 0; j < round_up(n, kSide); j += kSide, to += 256)
    for (int64_t d = 0; d < round_up(elements, kSide); d += kSide) {
      const bf16* from = p + j * row_step + d;
      int64_t step = row_step;
      if (j + kSide > n || d + kSide > elements) {
        for (int64_t i = 0; i < kSide; ++i)
          store(reinterpret_cast<float*>(rest + i * kSide),
                j + i < n ? row_units(Pairs{}, from + i * step, elements - d) : zero());
        from = rest, step = kSide;
      }
      float* tile = to + d / kLanes * tiles;
      // Lane l of the lower halves is element l / 4 * 8 + l % 4, of the upper ones four more.
      for (int upper = 0; upper < 2; ++upper) {
        vf square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const __m512i even = _mm512_loadu_si512(from + 2 * i * step);
          const __m512i odd = _mm512_loadu_si512(from + (2 * i + 1) * step);
          square[i] =
              (vf)(upper ? _mm512_unpackhi_epi16(even, odd) : _mm512_unpacklo_epi16(even, odd));
        }
        transpose(square);
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) {
          const int e = l / 4 * 8 + l % 4 + 4 * upper;
          store(tile + e / kLanes * tiles + e % kLanes * 16, square[l]);
        }
      }
    }
}

}  // namespace
}  // namespace hexad
#endif
