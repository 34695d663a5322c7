// Tiles of sixteen rows by 64 bytes (its instructions are statements, one a line): what the level
// amx adds to pairs.h, for bfloat16 and bytes.
//
// multiply(C, A, B): c[m][n] += sum over k of a[m][k] * b[k][n], m and n below 16. A row of A is 32
// bfloat16 (64 bytes), one after another; row i of B holds, for each of sixteen n, the pair (2i, 2i
// + 1) (bytes: four of k); a row of C is sixteen float32 (bytes: int32). The even k are one chain
// of fma from zero, the odd ones another, their sum is added to c; subnormals count as zero. So the
// bits do not change when A and B trade places, nor with what the other rows and columns hold.
#pragma once

#include "cpu/pairs.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HEXAD_TILES 1

namespace hexad {
namespace {

constexpr int kTileSide = 16;   // rows of a tile, and columns of a C
constexpr int kTilePairs = 16;  // pairs of bfloat16 in a row of A: 32 numbers

// What was written is in memory: the compiler is not told that tiles and their configuration read
// it.
HEXAD_INLINE void settle() {
  asm volatile("" ::: "memory");
}

// What tiles 0 .. 7 hold: rows of so many bytes.
struct TileShapes {
  uint8_t palette = 1, start = 0, none[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// While it lives this thread's tiles 0 .. 7 have 16 rows of 64 bytes; those of `few` fewer rows.
class Tiles {
 public:
  Tiles() : Tiles(0, 16) {}
  Tiles(unsigned few, int rows) {
    alignas(64) TileShapes shapes;
    for (int i = 0; i < 8; ++i)
      if (few >> i & 1) shapes.rows[i] = uint8_t(rows);
    configure(shapes);
  }
  explicit Tiles(const TileShapes& shapes) { configure(shapes); }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  static HEXAD_INLINE void configure(const TileShapes& shapes) {
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
};

}  // namespace
}  // namespace hexad
#else
#define HEXAD_TILES 0
#endif
