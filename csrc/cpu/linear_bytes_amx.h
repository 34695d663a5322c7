// linear's products of bytes in tiles: a group of 64 inputs is one product, its integers are those
// of linear_bytes.h, and so are the sums.
#pragma once

#include "cpu/amx.h"
#include "cpu/linear_bytes.h"

#if HEXAD_TILES

namespace hexad {
namespace {

constexpr int kByteRows = 512;   // of an item, at most
constexpr int kByteGroups = 8;   // that are summed at a time
constexpr int kByteTile = 1024;  // bytes

// The groups begin to end of a panel as tiles B of signed bytes, zeros after the last input.
inline void signed_tiles(const int32_t* words, int64_t begin, int64_t end, int64_t quads,
                         char* to) {
  for (int64_t q = begin * kTileSide; q < end * kTileSide; ++q, to += 64) {
    const __m512i w = q < quads ? _mm512_xor_si512(_mm512_loadu_si512(words + q * kPanel),
                                                   _mm512_set1_epi8(char(0x80)))
                                : _mm512_setzero_si512();
    _mm512_store_si512(to, w);
  }
}

// Up to 16 rows by an item's panels. Products are taken up kByteLate products later: what a tile
// stores can't be read before it has reached the cache.
inline void sum_byte_tiles(int rows, int panels, int groups, bool first, const char* x,
                           const float (*scales)[kTileSide],
                           const char (*w)[kByteGroups * kByteTile], float* sums) {
  constexpr int kByteLate = 4;
  alignas(64) int32_t products[2 * kByteLate][kTileSide * kTileSide];
  const int count = panels * groups;
  int ahead = 0, group = 0, panel = 0;
  const auto multiply = [&]() __attribute__((always_inline)) {
    _tile_zero(0);
    _tile_loadd(4, x + group * kByteTile, 64);
    _tile_loadd(5, w[panel] + group * kByteTile, 64);
    _tile_dpbssd(0, 4, 5);
    _tile_stored(0, products[ahead % (2 * kByteLate)], 64);
    ++ahead;
    if (++group == groups) group = 0, ++panel;
  };
  while (ahead < std::min(kByteLate, count)) multiply();
  for (int i = 0, p = 0; p < panels; ++p, sums += kPanel) {
    reg acc[kTileSide];
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r)
      acc[r] = !first && r < rows ? load_reg(sums + r * kWidth) : set1_reg(0.f);
    for (int g = 0; g < groups; ++g, ++i) {
      if (ahead < count) multiply();
      const int32_t* from = products[i % (2 * kByteLate)];
#pragma GCC unroll 16
      for (int r = 0; r < kTileSide; ++r)
        acc[r] = fma(from_int(load<ireg>(from + r * kTileSide)), set1_reg(scales[g][r]), acc[r]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r)
      if (r < rows) store_reg(sums + r * kWidth, acc[r]);
  }
}

// sum_bytes<Int8> for many rows.
void sum_many_bytes(const LinearPackedArgs& a, const Group& group, int64_t first, int64_t rows,
                    float* sums) {
  const int64_t inputs = a.linear.inputs;
  const int64_t groups = (inputs + Int8::kGroup - 1) / Int8::kGroup, quads = (inputs + 3) / 4;
  const int64_t row_words = workspace_words(a.form, inputs);
  alignas(64) char w[kPanels][kByteGroups * kByteTile];
  // Rows that an item lacks stay zero, or another's: they make no difference.
  alignas(64) char x[kByteGroups * kByteTile] = {};
  alignas(64) float scales[kByteGroups][kTileSide] = {};
  const Tiles tiles;
  const int32_t* panel[kPanels];
  for (int p = 0; p < group.panels; ++p)
    panel[p] = static_cast<const int32_t*>(a.linear.weight) +
               group.row[p] / kPanel * a.linear.weight_stride;
  for (int64_t g = 0; g < groups; g += kByteGroups) {
    const int64_t end = std::min(groups, g + kByteGroups);
    for (int p = 0; p < group.panels; ++p)
      signed_tiles(panel[p] + Int8::kHeader, g, end, quads, w[p]);
    for (int64_t r = 0; r < rows; r += kTileSide) {
      const int height = int(std::min<int64_t>(kTileSide, rows - r));
      const ByteRows from{a.workspace + (first + r) * row_words, row_words, groups};
      for (int64_t j = g; j < end; ++j)
        for (int i = 0; i < height; ++i) {
          scales[j - g][i] = from.scale(i, j);
          _mm512_store_si512(x + (j - g) * kByteTile + i * 64,
                             _mm512_loadu_si512(from.quad(i, j * kTileSide)));
        }
      // A share of the next groups' panels.
      constexpr int lines = kByteGroups * kByteTile / 64;
      const int64_t count = end < groups ? group.panels * lines : 0;
      for (int64_t i = count * r / rows; i < count * (r + height) / rows; ++i)
        __builtin_prefetch(
            panel[i / lines] + Int8::kHeader + (end * kTileSide + i % lines) * kPanel, 0, 2);
      settle();
      sum_byte_tiles(height, group.panels, int(end - g), g == 0, x, scales, w, sums + r * kWidth);
    }
  }
  scale_rows(group, panel, rows, sums);
}

}  // namespace
}  // namespace hexad
#endif
