// linear's products of bytes in tiles: a group of 64 inputs is one product, its
// integers are those of linear_bytes.h, and so are the sums.
#pragma once

#include "cpu/amx.h"
#include "cpu/linear_bytes.h"

#if HEXAD_TILES

namespace hexad {
namespace {

constexpr int kByteRows = 512;  // of an item, at most
constexpr int kByteGroups = 8;  // that are summed at a time

// What int8 is to tiles: kLines of 64 bytes of a panel hold a group, kSteps rows of a tile B its
// signed bytes.
struct ByteTiles {
  static constexpr int kLines = 16, kSteps = 16;

  // Zeros after the last input.
  static HEXAD_INLINE void make(const int32_t* words, int64_t quads, char* to) {
    const __m512i top = _mm512_set1_epi8(char(0x80));
    if (quads >= kSteps) {
#pragma GCC unroll 16
      for (int q = 0; q < kSteps; ++q)
        _mm512_store_si512(to + q * 64,
                           _mm512_xor_si512(_mm512_loadu_si512(words + q * kPanel), top));
      return;
    }
    for (int q = 0; q < kSteps; ++q)
      _mm512_store_si512(to + q * 64,
                         q < quads ? _mm512_xor_si512(_mm512_loadu_si512(words + q * kPanel), top)
                                   : _mm512_setzero_si512());
  }

  template <int R>
  static HEXAD_INLINE void add(const int32_t* products, const ByteRows<Int8>& x, int64_t g,
                               reg (&acc)[R]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      acc[r] = fma(from_int(load<ireg>(products + r * kTileSide)), set1_reg(x.scale(r, g)), acc[r]);
  }
};

struct ByteItem {
  static constexpr int kTileBytes = ByteTiles::kSteps * 64;

  const int32_t* panel[kPanels];  // from a cut's first group on
  const int32_t* after[kPanels];  // what is read next when a panel's cut is done
  int panels, groups;
  int64_t quads;  // from the cut's first group on
  alignas(64) char w[kPanels * kByteGroups][kTileBytes];
};

// R rows by a cut of an item's panels. The first rows make the tiles B and ask for the cuts that
// follow. Products are taken up kByteLate products later: what a tile stores can't be read before
// it has reached the cache; nor can what it loads.
template <int R>
void sum_byte_tiles(ByteItem& item, bool make, const ByteRows<Int8>& x, int64_t begin,
                    float* sums) {
  constexpr int kByteLate = 4, kMadeLate = 4;
  alignas(64) int32_t products[2 * kByteLate][R * kTileSide];
  TileShapes shapes;
  shapes.rows[0] = shapes.rows[4] = R;
  shapes.bytes[4] = ByteTiles::kSteps * 4, shapes.rows[5] = ByteTiles::kSteps;
  const Tiles tiles(shapes);
  const int groups = item.groups, count = item.panels * groups;
  int made = 0, made_panel = 0, made_group = 0;
  const auto make_one = [&]() __attribute__((always_inline)) {
    const int32_t* from = item.panel[made_panel] + made_group * ByteTiles::kLines * kPanel;
    ByteTiles::make(from, item.quads - made_group * (Int8::kGroup / 4), item.w[made]);
    const int32_t* next = item.after[made_panel] + made_group * ByteTiles::kLines * kPanel;
#pragma GCC unroll 16
    for (int i = 0; i < ByteTiles::kLines; ++i) __builtin_prefetch(next + i * kPanel, 0, 2);
    ++made;
    if (++made_group == groups) made_group = 0, ++made_panel;
  };
  int ahead = 0, group = 0;
  const auto multiply = [&]() __attribute__((always_inline)) {
    settle();
    _tile_zero(0);
    _tile_loadd(4, x.quad(0, (begin + group) * (Int8::kGroup / 4)), x.stride * 4);
    _tile_loadd(5, item.w[ahead], 64);
    _tile_dpbssd(0, 4, 5);
    _tile_stored(0, products[ahead % (2 * kByteLate)], 64);
    ++ahead;
    if (++group == groups) group = 0;
  };
  if (make)
    while (made < std::min(kMadeLate + kByteLate, count)) make_one();
  while (ahead < std::min(kByteLate, count)) multiply();
  for (int i = 0, p = 0; p < item.panels; ++p, sums += kPanel) {
    reg acc[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = begin ? load_reg(sums + r * kWidth) : set1_reg(0.f);
    for (int g = 0; g < groups; ++g, ++i) {
      if (make && made < count) make_one();
      if (ahead < count) multiply();
      ByteTiles::add(products[i % (2 * kByteLate)], x, begin + g, acc);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store_reg(sums + r * kWidth, acc[r]);
  }
}

template <int R = kTileSide>
void sum_byte_rows(int rows, ByteItem& item, bool make, const ByteRows<Int8>& x, int64_t begin,
                   float* sums) {
  if constexpr (R > 1) {
    if (rows < R) return sum_byte_rows<R - 1>(rows, item, make, x, begin, sums);
  }
  sum_byte_tiles<R>(item, make, x, begin, sums);
}

// sum_bytes<Int8> for many rows.
void sum_many_bytes(const LinearPackedArgs& a, const Group& group, int64_t first, int64_t rows,
                    float* sums) {
  constexpr int kWords = ByteTiles::kLines * kPanel;  // of a group
  const int64_t inputs = a.linear.inputs, quads = (inputs + 3) / 4;
  const ByteRows<Int8> x(a.workspace, inputs, a.linear.rows);
  const int32_t* panel[kPanels];
  for (int p = 0; p < group.panels; ++p)
    panel[p] = static_cast<const int32_t*>(a.linear.weight) +
               group.row[p] / kPanel * a.linear.weight_stride;
  // Gates and their ups lie apart.
  const int64_t near = gated(a.linear) ? group.panels / 2 : group.panels;
  ByteItem item;
  item.panels = group.panels;
  for (int64_t g = 0; g < x.groups; g += kByteGroups) {
    const bool last = g + kByteGroups >= x.groups;
    item.groups = int(std::min<int64_t>(kByteGroups, x.groups - g));
    item.quads = quads - g * (Int8::kGroup / 4);
    for (int p = 0; p < group.panels; ++p) {
      item.panel[p] = panel[p] + Int8::kHeader + g * kWords;
      item.after[p] = last ? panel[p] + Int8::kHeader + near * a.linear.weight_stride
                           : item.panel[p] + kByteGroups * kWords;
    }
    for (int64_t r = 0; r < rows; r += kTileSide)
      sum_byte_rows(int(std::min<int64_t>(kTileSide, rows - r)), item, r == 0, x.from(first + r), g,
                    sums + r * kWidth);
  }
  scale_rows(group, panel, rows, sums);
}

}  // namespace
}  // namespace hexad
#endif
