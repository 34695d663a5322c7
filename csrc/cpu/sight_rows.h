// What query rows see of tiles of 64 keys, a word of bits a row, by strips of 32 rows: as sight.h,
// for kernels whose lanes are keys.
#pragma once

#include "cpu/amx.h"
#include "cpu/sight.h"

#if HEXAD_TILES

namespace hexad {
namespace {

constexpr int kStrip = 32;      // rows
constexpr int kMostRows = 512;  // of a block
constexpr int kMostTiles = 8;   // looked at together

static_assert(SharedMask::kBlock == kMostRows && SharedMask::kBlock / 32 == kMostRows / kStrip);

class RowSight {
 public:
  struct Strip {
    int from, upto;  // keys of the tile that any row sees; from >= upto: none
    bool plain;      // all rows see all of the tile
  };
  struct Tile {
    int from, upto;  // keys of it that the ranges of any rows meet
    Strip strips[kMostRows / kStrip];
    uint64_t words[kMostRows];  // of strips that are not plain
  };

  int rows;
  int64_t query[kMostRows], head[kMostRows];  // which query of which head of the group a row is
  int64_t first, last;                        // keys that any row sees
  Tile tiles[kMostTiles];

  RowSight(const Job<bf16>& job, int64_t begin, int64_t end) : rows(int(end - begin)), job_(job) {
    SharedMask* shared = job.shared;
    if (shared && (shared->data != job.mask.data || shared->begin != begin || shared->end != end)) {
      shared->data = job.mask.data, shared->begin = begin, shared->end = end;
      memset(shared->known, 0, sizeof shared->known);
    }
    int64_t i = begin / job.group, g = begin % job.group;
    first = INT64_MAX, last = 0;
    for (int r = 0; r < rows; ++r) {
      query[r] = i, head[r] = g;
      if (++g == job.group) g = 0, ++i;
      mask_at_[r] = head[r] * job.mask.head + query[r] * job.mask.row;
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

  // To be called before look(), with the same tiles: those `count` from key `base` on.
  void approach(int64_t base, int count) {
    for (int t = 0; t < count; ++t) {
      const int64_t at = base + t * kTile;
      tiles[t].from = int(std::clamp<int64_t>(first - at, 0, kTile));
      tiles[t].upto = int(std::clamp<int64_t>(last - at, 0, kTile));
    }
    if (!alike()) return;
    read_masks(base, 0, count, 0, 1);
    for (int t = 0; t < count; ++t) shown_[t] = tiles[t].words[0];
  }

  // Looks at what a strip sees of the tiles; false if nothing. A mask is read row by row through
  // all of them: its rows mostly lie in other pages.
  bool look(int64_t base, int count, int s) {
    const bool masked = job_.mask.kind != MaskKind::none, same = alike();
    const int first = s * kStrip, end = first + rows_of(s);
    const Range outer = outer_[s], inner = inner_[s];
    // Tiles that the strip's ranges meet.
    int from = 0, upto = count;
    while (from < upto && base + (from + 1) * kTile <= outer.from) ++from;
    while (from < upto && base + (upto - 1) * kTile >= outer.upto) --upto;
    if (masked && !same && !recall(base, from, upto, s)) {
      read_masks(base, from, upto, first, end);
      remember(base, from, upto, s);
    }
    uint64_t any = 0;
    for (int t = 0; t < count; ++t) {
      uint64_t some = 0, each = ~0ull, *words = tiles[t].words;
      const int64_t at = base + t * kTile;
      const bool inside = at >= inner.from && at + kTile <= inner.upto;
      if (!masked && inside) {
        some = each;
      } else if (t >= from && t < upto) {
        if (!masked || same) std::fill(words + first, words + end, same ? shown_[t] : ~0ull);
        if (!inside)
          for (int r = first; r < end; ++r)
            words[r] &= run_of_bits(int(std::clamp<int64_t>(lo_[r] - at, 0, kTile)),
                                    int(std::clamp<int64_t>(hi_[r] - at, 0, kTile)));
        for (int r = first; r < end; ++r) some |= words[r], each &= words[r];
      }
      tiles[t].strips[s] = {some ? __builtin_ctzll(some) : 0, some ? 64 - __builtin_clzll(some) : 0,
                            some && each == ~0ull};
      any |= some;
    }
    return any;
  }

  // Asks for what the next strip reads of a mask of E where row r reads it for the tile at `base`;
  // beside the last strip, for what the first one reads of the tile after those in scratch.
  template <class E>
  HEXAD_INLINE void ask(int64_t base, int r) const {
    const bool more = r + kStrip < rows;
    const E* row = static_cast<const E*>(job_.mask.data) + base +
                   (more ? mask_at_[r + kStrip] : mask_at_[r % kStrip] + kMostTiles * kTile);
#pragma GCC unroll 4
    for (int j = 0; j < kTile; j += 64 / sizeof(E)) __builtin_prefetch(row + j, 0, 2);
  }

  // Where row r of a mask starts, in numbers.
  int64_t mask_at(int r) const { return mask_at_[r]; }

  // A floating mask for row r and the tile at `base`; keys there are none of repeat the last.
  void read_bias(int64_t base, int r, float* to) const {
    const auto read = [&](const auto* p) {
      for (int j = 0; j < kTile; ++j)
        to[j] = to_float(p[mask_at_[r] + std::min(base + j, job_.count - 1) * job_.mask.key]);
    };
    job_.mask.kind == MaskKind::f32 ? read(static_cast<const float*>(job_.mask.data))
                                    : read(static_cast<const bf16*>(job_.mask.data));
  }

 private:
  // Whether a mask shows all rows the same.
  bool alike() const {
    return job_.mask.kind != MaskKind::none && job_.mask.row == 0 &&
           (job_.mask.head == 0 || job_.group == 1);
  }

  // Takes what an earlier head has read; false if any of it is missing.
  bool recall(int64_t base, int from, int upto, int s) {
    const SharedMask* shared = job_.shared;
    const int64_t at = base / kTile;
    if (!shared || at + upto > SharedMask::kTiles) return false;
    for (int t = from; t < upto; ++t)
      if (!shared->known[at + t][s]) return false;
    for (int t = from; t < upto; ++t)
      std::copy_n(shared->words[at + t] + s * kStrip, rows_of(s), tiles[t].words + s * kStrip);
    return true;
  }
  void remember(int64_t base, int from, int upto, int s) {
    SharedMask* shared = job_.shared;
    const int64_t at = base / kTile;
    for (int t = from; shared && t < upto && at + t < SharedMask::kTiles; ++t) {
      std::copy_n(tiles[t].words + s * kStrip, rows_of(s), shared->words[at + t] + s * kStrip);
      shared->known[at + t][s] = true;
    }
  }

  // What a mask shows rows [first, end) of tiles [from, upto).
  void read_masks(int64_t base, int from, int upto, int first, int end) {
    const void* data = job_.mask.data;
    switch (job_.mask.kind) {
      case MaskKind::boolean:
        return read_masks(static_cast<const uint8_t*>(data), base, from, upto, first, end);
      case MaskKind::f32:
        return read_masks(static_cast<const float*>(data), base, from, upto, first, end);
      default:
        read_masks(static_cast<const bf16*>(data), base, from, upto, first, end);
    }
  }

  template <class E>
  HEXAD_INLINE void read_masks(const E* mask, int64_t base, int from, int upto, int first,
                               int end) {
    constexpr int kAhead = 4;  // rows
    const int64_t step = job_.mask.key;
    // Tiles that are read as they lie.
    const int whole =
        step == 1 ? int(std::clamp<int64_t>((job_.count - base) / kTile, from, upto)) : from;
    for (int r = first; r < end; ++r) {
      const E* row = mask + mask_at_[r] + base * step;
      const E* ahead = mask + mask_at_[std::min(r + kAhead, rows - 1)] + base;
      for (int t = from; t < whole; ++t) {
#pragma GCC unroll 4
        for (int j = 0; j < kTile; j += 64 / sizeof(E))
          __builtin_prefetch(ahead + t * kTile + j, 0, 2);
        tiles[t].words[r] = shown_keys(row + t * kTile);
      }
      for (int t = whole; t < upto; ++t) {
        uint64_t word = 0;
        const int64_t left = std::min<int64_t>(kTile, job_.count - base - t * kTile);
        for (int64_t j = 0; j < left; ++j)
          word |= uint64_t(shows(row[(t * kTile + j) * step])) << j;
        tiles[t].words[r] = word;
      }
    }
  }

  const Job<bf16>& job_;
  uint64_t shown_[kMostTiles];  // by a mask that is alike
  struct Range {
    int64_t from, upto;
  };
  int64_t lo_[kMostRows], hi_[kMostRows], mask_at_[kMostRows];   // keys that a row sees
  Range outer_[kMostRows / kStrip], inner_[kMostRows / kStrip];  // that any of a strip's rows, all
};

}  // namespace
}  // namespace hexad

#endif
