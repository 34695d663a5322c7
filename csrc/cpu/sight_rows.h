// What query rows see of tiles of 64 keys, a word of bits a row, by strips of 32 rows: as sight.h,
// for kernels whose lanes are keys.
#pragma once

#include "cpu/sight.h"

namespace hexad {
namespace {

constexpr int kStrip = 32;      // rows
constexpr int kMostRows = 512;  // of a block
constexpr int kMostTiles = 8;   // looked at together

class RowSight {
 public:
  struct Strip {
    int from, upto;  // keys of the tile that any row sees; from >= upto: none
    bool plain;      // all rows see all of the tile
  };
  struct Tile {
    int from, upto;  // the same of all strips
    Strip strips[kMostRows / kStrip];
    uint64_t words[kMostRows];  // of strips that are not plain
  };

  int rows;
  int64_t query[kMostRows], head[kMostRows];  // which query of which head of the group a row is
  int64_t first, last;                        // keys that any row sees
  Tile tiles[kMostTiles];

  RowSight(const Job<bf16>& job, int64_t begin, int64_t end) : rows(int(end - begin)), job_(job) {
    int64_t i = begin / job.group, g = begin % job.group;
    first = INT64_MAX, last = 0;
    for (int r = 0; r < rows; ++r) {
      query[r] = i, head[r] = g;
      if (++g == job.group) g = 0, ++i;
      const int64_t at = query[r] + job.offset;
      lo_[r] = job.left < 0 ? 0 : std::max<int64_t>(0, at - job.left);
      hi_[r] = job.right < 0 ? job.count : std::min(job.count, at + job.right + 1);
      if (lo_[r] < hi_[r]) first = std::min(first, lo_[r]), last = std::max(last, hi_[r]);
    }
    for (int s = 0; s * kStrip < rows; ++s) {
      const int from = s * kStrip, upto = from + rows_of(s);
      outer_[s] = {*std::min_element(lo_ + from, lo_ + upto),
                   *std::max_element(hi_ + from, hi_ + upto)};
      inner_[s] = {*std::max_element(lo_ + from, lo_ + upto),
                   *std::min_element(hi_ + from, hi_ + upto)};
    }
  }

  int rows_of(int strip) const { return std::min(kStrip, rows - strip * kStrip); }

  // Looks at the tile that starts at key `base`; false if no row sees any of it.
  bool look(int64_t base, Tile& tile) const {
    const bool masked = job_.mask.kind != MaskKind::none;
    const bool alike = job_.mask.row == 0 && (job_.mask.head == 0 || job_.group == 1);
    uint64_t any = 0, shown = masked && alike ? read_mask(base, 0) : ~0ull;
    for (int s = 0; s * kStrip < rows; ++s) {
      uint64_t some = 0, each = ~0ull;
      if (!masked && base >= inner_[s].from && base + kTile <= inner_[s].upto) {
        some = each;
      } else if (base < outer_[s].upto && base + kTile > outer_[s].from) {
        for (int r = s * kStrip; r < s * kStrip + rows_of(s); ++r) {
          uint64_t row = run_of_bits(int(std::clamp<int64_t>(lo_[r] - base, 0, kTile)),
                                     int(std::clamp<int64_t>(hi_[r] - base, 0, kTile)));
          if (masked && !alike && row) shown = read_mask(base, r);
          row &= shown;
          tile.words[r] = row;
          some |= row, each &= row;
        }
      }
      tile.strips[s] = {some ? __builtin_ctzll(some) : 0, some ? 64 - __builtin_clzll(some) : 0,
                        some && each == ~0ull};
      any |= some;
    }
    tile.from = any ? __builtin_ctzll(any) : 0, tile.upto = any ? 64 - __builtin_clzll(any) : 0;
    return any;
  }

  // Sixteen numbers of a floating mask for row r, from key j of the tile on.
  vf bias(int64_t base, int r, int j) const {
    const Mask& m = job_.mask;
    if (m.kind == MaskKind::f32) return read(static_cast<const float*>(m.data), base + j, r);
    return read(static_cast<const bf16*>(m.data), base + j, r);
  }

 private:
  template <class E>
  vf read(const E* p, int64_t key, int r) const {
    const Mask& m = job_.mask;
    p += head[r] * m.head + query[r] * m.row;
    if (m.key == 1 && key + kLanes <= job_.count) return load(p + key);
    alignas(64) float row[kLanes];
    for (int i = 0; i < kLanes; ++i)
      row[i] = to_float(p[std::min(key + i, job_.count - 1) * m.key]);
    return load(row);
  }

  // What a mask shows row r.
  uint64_t read_mask(int64_t base, int r) const {
    const Mask& m = job_.mask;
    uint64_t row = 0;
    if (m.kind == MaskKind::boolean) {
      const uint8_t* p = static_cast<const uint8_t*>(m.data) + head[r] * m.head + query[r] * m.row;
      if (m.key == 1 && base + kTile <= job_.count) return set_bytes(p + base);
      for (int j = 0; j < kTile && base + j < job_.count; ++j)
        row |= uint64_t(p[(base + j) * m.key] != 0) << j;
      return row;
    }
    const vf hides = set1(-__builtin_inff());
    for (int j = 0; j < kTile; j += kLanes)
      row |= uint64_t(signs(equal(bias(base, r, j), hides))) << j;
    return ~row;
  }

  const Job<bf16>& job_;
  struct Range {
    int64_t from, upto;
  };
  int64_t lo_[kMostRows], hi_[kMostRows];                        // keys that a row sees
  Range outer_[kMostRows / kStrip], inner_[kMostRows / kStrip];  // that any of a strip's rows, all
};

}  // namespace
}  // namespace hexad
