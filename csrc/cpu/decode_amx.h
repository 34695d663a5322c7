// The query heads that share one head of a bfloat16 cache, over its tiles, on AMX: the products and
// the softmax of a prefill's row (cpu/attend_tiles.h), so that it has the same bits.
#pragma once

#include "cpu/attend_tiles.h"
#include "cpu/decode_few.h"
#include "cpu/decode_rows.h"

#if HEXAD_TILES

namespace hexad {
namespace {

class TileRows {
  static constexpr int64_t kChunk = 128;   // dimensions of a tile of keys or values in scratch
  static constexpr int kFew = 4;           // rows that the vectors are faster at
  static constexpr int64_t kTurned = 512;  // dimensions of turned queries

 public:
  TileRows(const Group<bf16, bf16>& group, int64_t begin, int64_t end)
      : g_(group),
        begin_(begin),
        rows_(int(end - begin)),
        q_step_(padded(group.head_dim)),
        o_step_(padded(group.value_dim)),
        form_(form_of(false, false, group.scale, group.softcap, group.slopes)) {}

  // Query heads of a block, as many as a tile has rows at most.
  static int64_t block(int64_t head_dim, int64_t value_dim) {
    return std::min<int64_t>(kTileSide, block_rows(head_dim, value_dim));
  }

  // following(tile) finds the first tile of what is done after this, if anything is.
  template <class Following>
  void run(const Following& following) {
    std::fill(out_, out_ + rows_ * o_step_, 0.f);
    std::fill(best_, best_ + kTileSide, -__builtin_inff());
    std::fill(sums_, sums_ + kTileSide * kLanes, 0.f);
    if (g_.lo < g_.hi) {
      for (int r = 0; r < rows_; ++r) {
        const bf16* q = g_.q + (begin_ + r) * g_.q_head;
        for (int64_t d = 0; d < q_step_; d += kStepWidth)
          _mm512_store_si512(q_ + r * q_step_ + d, load_32(q + d, g_.head_dim - d));
      }
      const SubnormalsAreZero mode;
      if (rows_ <= kFew) {
        for (int64_t i = 0; i < rows_ * q_step_; i += kLanes) store(few_q_ + i, load(q_ + i));
        walk(following);
      } else {
        // Tiles 0 and 1 have the queries' rows.
        const Tiles tiles(0x3, rows_);
        turn_queries(0);
        walk(following);
      }
    }
    finish();
  }

 private:
  template <class Following>
  void walk(const Following& following) {
    int64_t base = g_.lo / kTile * kTile;
    tiles_[0].locate(g_.cache, base, g_.lo, g_.hi);
    for (int here = 0; base < g_.hi; here ^= 1) {
      const Tile<bf16>& tile = tiles_[here];
      base += kTile;
      Tile<bf16>* next = &tiles_[here ^ 1];
      if (base < g_.hi) {
        next->locate(g_.cache, base, g_.lo, g_.hi);
        touch_pages(g_.cache, base + kTile, std::min(base + 2 * kTile, g_.hi));
      } else if (!following(*next)) {
        next = nullptr;
      }
      Ahead ahead = next ? next->ahead(g_.head_dim, g_.value_dim) : Ahead();
      // What is stored for a tile to load takes its time: values are paired well before their use.
      if (early()) pair<false>(tile, &ahead, 0);
      scores(tile, ahead);
      soften(tile);
      values(tile, ahead);
      ahead.rest();
    }
  }

  void scores(const Tile<bf16>& tile, Ahead& next) {
    if (rows_ <= kFew)
      return with_rows(rows_, [&](auto count) {
        constexpr int R = std::min<int>(decltype(count)::value, kFew);
        score_few<R>(few_q_, q_step_, g_.head_dim, tile.k, next, tile.begin, tile.end, s_);
      });
    // A row of these products is a key, where it lies, and a column a query: the bits are the same.
    const int first = tile.begin / kTileSide, last = (tile.end - 1) / kTileSide;
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t at = 0; at < g_.head_dim; at += kTurned) {
      const int64_t dims = std::min(kTurned, g_.head_dim - at);
      if (g_.head_dim > kTurned) turn_queries(at);
      Rows16 k[kGroups];
      for (int g = 0; g < kGroups; ++g)
        k[g] = rows_of(tile, std::clamp(g, first, last), at, dims, k_ + g * kTurned * kTileSide);
      settle();
      for (int64_t i = 0; i < steps_of(dims); ++i) {
        _tile_loadd(7, turned_ + i * kTileFloats, 64);
        _tile_stream_loadd(6, k[0].p + i * kStepWidth, k[0].step);
        _tile_dpbf16ps(2, 6, 7);
        next.ask(2 * kTileSide * 64);
        _tile_stream_loadd(6, k[1].p + i * kStepWidth, k[1].step);
        _tile_dpbf16ps(3, 6, 7);
        _tile_stream_loadd(6, k[2].p + i * kStepWidth, k[2].step);
        _tile_dpbf16ps(4, 6, 7);
        next.ask(2 * kTileSide * 64);
        _tile_stream_loadd(6, k[3].p + i * kStepWidth, k[3].step);
        _tile_dpbf16ps(5, 6, 7);
      }
    }
    alignas(64) float products[kGroups][kTileFloats];
    _tile_stored(2, products[0], 64);
    _tile_stored(3, products[1], 64);
    _tile_stored(4, products[2], 64);
    _tile_stored(5, products[3], 64);
    settle();
    for (int g = first; g <= last; ++g) turn_scores(products[g], g);
  }

  // Dimensions [at, at + kTurned) of the queries as right factors, a tile for each step.
  void turn_queries(int64_t at) {
    for (int64_t i = 0; i < steps_of(std::min(kTurned, g_.head_dim - at)); ++i) {
      reg square[kTileSide];
      for (int r = 0; r < kTileSide; ++r)
        square[r] = r < rows_ ? load_reg((const float*)(q_ + r * q_step_ + at + i * kStepWidth))
                              : set1_reg(0.f);
      transpose(square);
      for (int r = 0; r < kTileSide; ++r)
        store_reg(turned_ + i * kTileFloats + r * kTileSide, square[r]);
    }
  }

  // Sixteen rows of keys, `step` bytes apart.
  struct Rows16 {
    const bf16* p;
    int64_t step;
  };

  // Group g of the tile: where it lies, or copied, with zeros where a row ends within a step.
  static Rows16 rows_of(const Tile<bf16>& tile, int g, int64_t at, int64_t dims, bf16* to) {
    const bf16* const* k = tile.k + g * kTileSide;
    if (tile.straight >> g & 1 && dims % kStepWidth == 0)
      return {k[0] + at, tile.k_step * int64_t(sizeof(bf16))};
    const int64_t step = steps_of(dims) * kStepWidth;
    for (int r = 0; r < kTileSide; ++r)
      for (int64_t d = 0; d < dims; d += kStepWidth)
        _mm512_store_si512(to + r * step + d, load_32(k[r] + at + d, dims - d));
    return {to, step * int64_t(sizeof(bf16))};
  }

  // Products of group g with the queries, turned to be rows of scores.
  void turn_scores(const float* products, int g) {
    const void* rows[kTileSide];
    for (int i = 0; i < kTileSide; ++i) rows[i] = products + i * kTileSide;
    reg square[kTileSide];
    load_turned(rows, 0, square);
#pragma GCC unroll 16
    for (int r = 0; r < kTileSide; ++r)
      if (r < rows_) store_reg(s_ + r * kTile + g * kTileSide, square[r]);
  }

  void soften(const Tile<bf16>& tile) {
    seen_ = (tile.end == kTile ? ~uint64_t(0) : (uint64_t(1) << tile.end) - 1) >> tile.begin
                                                                                      << tile.begin;
    for (int r = 0; r < rows_; ++r) {
      const Place place{g_.slopes ? g_.slopes[(begin_ + r) * g_.slopes_head] : 0,
                        float(g_.hi - 1 - tile.base)};
      switch (form_) {
        case Form::plain:
          soften(r, PlainScore(g_.scale));
          break;
        case Form::capped:
          soften(r, CappedScore(g_.scale, g_.softcap));
          break;
        case Form::sloped:
          soften(r, SlopedScore(g_.scale, place));
          break;
        default:
          soften(r, general(s_ + r * kTile, g_.scale, g_.softcap, place, nullptr));
      }
    }
    settle();
  }

  template <class Score>
  void soften(int r, const Score& score) {
    float *s = s_ + r * kTile, *sums = sums_ + r * kLanes;
    bf16* p = p_ + r * kTile;
    const float fall = ~seen_ ? soften_row<false>(score, s, seen_, best_ + r, sums, p)
                              : soften_row<true>(score, s, 0, best_ + r, sums, p);
    if (fall == 1) return;
    float* out = out_ + r * o_step_;
    for (int64_t d = 0; d < o_step_; d += kLanes) store(out + d, load(out + d) * set1(fall));
  }

  // out_[row] += the weighted values.
  void values(const Tile<bf16>& tile, Ahead& next) {
    if (rows_ <= kFew) {
      for (int i = 0; i < rows_ * kTile; i += kLanes) store(s_ + i, load(p_ + i));
      return with_rows(rows_, [&](auto count) {
        constexpr int R = std::min<int>(decltype(count)::value, kFew);
        weigh_few<R>(s_, tile.v, next, g_.value_dim, tile.begin, tile.end, out_, o_step_);
      });
    }
    // Infinities and NaN among the values show in the sums, which are then made again without them.
    float* to = out_ == sums_of_[0] ? sums_of_[1] : sums_of_[0];
    if (!add_values<false>(tile, next, to)) add_values<true>(tile, next, to);
    out_ = to;
  }

  // Whether all dimensions of the values are paired before the scores.
  bool early() const { return rows_ > kFew && g_.value_dim <= kChunk; }

  // Dimensions [at, at + kChunk) of the values as right factors; kClean: as pair_values does.
  template <bool kClean>
  bool pair(const Tile<bf16>& tile, Ahead* next, int64_t at) {
    const int64_t dims = std::min(kChunk, g_.value_dim - at);
    if (kClean) return pair_values(tile.v, next, at, dims, tile.begin, tile.end, v_);
    if (tile.begin == 0 && tile.end == kTile && dims % kStepWidth == 0)
      pair_rows<true, false, false>(tile.v, next, at, dims, 0, kTile, v_);
    else
      pair_rows<false, false, false>(tile.v, next, at, dims, tile.begin, tile.end, v_);
    return false;
  }

  // to[row] = out_[row] + the weighted values; false if a sum is not finite. kClean: what is not
  // finite among the values is added by itself.
  template <bool kClean>
  bool add_values(const Tile<bf16>& tile, Ahead& next, float* to) {
    const int from = tile.begin / kStepWidth, upto = int(steps_of(tile.end));
    for (int64_t at = 0; at < g_.value_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, g_.value_dim - at), wide = 2 * steps_of(dims);
      const bool special = (kClean || !early()) && pair<kClean>(tile, &next, at);
      settle();
      for (int64_t n = 0; n < wide; ++n) {
        const int64_t column = at + n * kTileSide, stride = o_step_ * sizeof(float);
        _tile_loadd(0, out_ + column, stride);
        for (int i = from; i < upto; ++i) {
          _tile_loadd(1, p_ + i * kStepWidth, kTile * sizeof(bf16));
          _tile_loadd(7, v_ + (i * wide + n) * kTileFloats, 64);
          _tile_dpbf16ps(0, 1, 7);
        }
        _tile_stored(0, to + column, stride);
      }
      settle();
      if (special) add_special(tile, at, dims, to);
    }
    __mmask16 wrong = 0;
    for (int64_t i = 0; !kClean && i < rows_ * o_step_; i += kLanes)
      wrong |= _mm512_fpclass_ps_mask(_mm512_load_ps(to + i), 0x99);  // NaN or infinity
    return !wrong;
  }

  // What infinities and NaN among the values add.
  __attribute__((noinline)) void add_special(const Tile<bf16>& tile, int64_t at, int64_t dims,
                                             float* to) {
    for (int j = tile.begin; j < tile.end; ++j)
      for (int64_t d = at; d < at + dims; ++d) {
        if ((tile.v[j][d].raw & 0x7f80) != 0x7f80) continue;
        for (int r = 0; r < rows_; ++r)
          to[r * o_step_ + d] += to_float(p_[r * kTile + j]) * to_float(tile.v[j][d]);
      }
  }

  void finish() {
    alignas(64) float total[kLanes], sinks[kLanes] = {}, factor[kLanes], lse[kLanes];
    for (int r = 0; r < kLanes; ++r) total[r] = sum(load(sums_ + r * kLanes));
    for (int r = 0; g_.sinks && r < rows_; ++r) sinks[r] = g_.sinks[(begin_ + r) * g_.sinks_head];
    close_softmax(form_, best_, total, g_.sinks ? sinks : nullptr, factor, lse);
    for (int r = 0; r < rows_; ++r) {
      g_.lse[(begin_ + r) * g_.lse_head] = lse[r];
      write_row(g_.out + (begin_ + r) * g_.out_head, out_ + r * o_step_, factor[r], g_.value_dim);
    }
  }

  const Group<bf16, bf16>& g_;
  const int64_t begin_;
  const int rows_;
  const int64_t q_step_, o_step_;
  const Form form_;
  uint64_t seen_;
  Tile<bf16> tiles_[2];                                // the one at work and the next
  alignas(64) bf16 q_[kRowFloats];                     // queries
  alignas(64) float few_q_[kRowFloats];                // the same, if they are few
  alignas(64) float sums_of_[2][kRowFloats];           // sums, not yet divided
  float* out_ = sums_of_[0];                           // those of the tiles so far
  alignas(64) float s_[kTileSide * kTile];             // scores
  alignas(64) bf16 p_[kTileSide * kTile];              // weights
  alignas(64) bf16 k_[kGroups * kTurned * kTileSide];  // keys that don't lie evenly
  alignas(64) float v_[kTile / 2 * kChunk];            // values, paired
  alignas(64) float turned_[kTurned / 2 * kTileSide];  // queries as right factors
  alignas(64) float best_[kTileSide], sums_[kTileSide * kLanes];
};

}  // namespace
}  // namespace hexad
#endif
