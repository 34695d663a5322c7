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
  static constexpr int64_t kChunk = 128;  // dimensions of a tile of keys or values in scratch
  static constexpr int kFew = 4;          // rows that the vectors are faster at

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
        // Tiles 0 .. 4 have the queries' rows.
        const Tiles tiles(0x1f, rows_);
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
        next = &tiles_[here];  // nothing to prefetch
      }
      scores(tile, *next);
      soften(tile);
      values(tile, *next);
    }
  }

  void scores(const Tile<bf16>& tile, const Tile<bf16>& next) {
    if (rows_ <= kFew)
      return with_rows(rows_, [&](auto count) {
        constexpr int R = std::min<int>(decltype(count)::value, kFew);
        score_few<R>(few_q_, q_step_, g_.head_dim, tile.k, next.k, tile.begin, tile.end, s_);
      });
    constexpr int64_t kStride = kTile * sizeof(float);
    for (int64_t at = 0; at < g_.head_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, g_.head_dim - at), steps = steps_of(dims);
      turn_keys(tile.k, next.k, at, dims, tile.begin, tile.end, kv_);
      settle();
      if (at) {
        _tile_loadd(0, s_, kStride);
        _tile_loadd(1, s_ + kTileSide, kStride);
        _tile_loadd(2, s_ + 2 * kTileSide, kStride);
        _tile_loadd(3, s_ + 3 * kTileSide, kStride);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t i = 0; i < steps; ++i) {
        const float* k = kv_ + i * kGroups * kTileFloats;
        _tile_loadd(4, q_ + at + i * kStepWidth, q_step_ * sizeof(bf16));
        _tile_loadd(5, k, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, k + kTileFloats, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, k + 2 * kTileFloats, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, k + 3 * kTileFloats, 64);
        _tile_dpbf16ps(3, 4, 5);
      }
      _tile_stored(0, s_, kStride);
      _tile_stored(1, s_ + kTileSide, kStride);
      _tile_stored(2, s_ + 2 * kTileSide, kStride);
      _tile_stored(3, s_ + 3 * kTileSide, kStride);
    }
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
  void values(const Tile<bf16>& tile, const Tile<bf16>& next) {
    if (rows_ <= kFew) {
      for (int i = 0; i < rows_ * kTile; i += kLanes) store(s_ + i, load(p_ + i));
      return with_rows(rows_, [&](auto count) {
        constexpr int R = std::min<int>(decltype(count)::value, kFew);
        weigh_few<R>(s_, tile.v, next.v, g_.value_dim, tile.begin, tile.end, out_, o_step_);
      });
    }
    const int from = tile.begin / kStepWidth, upto = int(steps_of(tile.end));
    for (int64_t at = 0; at < g_.value_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, g_.value_dim - at), wide = 2 * steps_of(dims);
      const bool special = pair_values(tile.v, next.v, at, dims, tile.begin, tile.end, kv_);
      settle();
      for (int64_t n = 0; n < wide; n += 2) {
        float* out = out_ + at + n * kTileSide;
        const int64_t stride = o_step_ * sizeof(float);
        _tile_loadd(0, out, stride);
        _tile_loadd(1, out + kTileSide, stride);
        for (int i = from; i < upto; ++i) {
          const float* v = kv_ + (i * wide + n) * kTileFloats;
          _tile_loadd(4, p_ + i * kStepWidth, kTile * sizeof(bf16));
          _tile_loadd(5, v, 64);
          _tile_dpbf16ps(0, 4, 5);
          _tile_loadd(6, v + kTileFloats, 64);
          _tile_dpbf16ps(1, 4, 6);
        }
        _tile_stored(0, out, stride);
        _tile_stored(1, out + kTileSide, stride);
      }
      if (special) add_special(tile, at, dims);
    }
  }

  // What infinities and NaN among the values add.
  __attribute__((noinline)) void add_special(const Tile<bf16>& tile, int64_t at, int64_t dims) {
    for (int j = tile.begin; j < tile.end; ++j)
      for (int64_t d = at; d < at + dims; ++d) {
        if ((tile.v[j][d].raw & 0x7f80) != 0x7f80) continue;
        for (int r = 0; r < rows_; ++r)
          out_[r * o_step_ + d] += to_float(p_[r * kTile + j]) * to_float(tile.v[j][d]);
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
  Tile<bf16> tiles_[2];                       // the one at work and the next
  alignas(64) bf16 q_[kRowFloats];            // queries
  alignas(64) float few_q_[kRowFloats];       // the same, if they are few
  alignas(64) float out_[kRowFloats];         // sums, not yet divided
  alignas(64) float s_[kTileSide * kTile];    // scores
  alignas(64) bf16 p_[kTileSide * kTile];     // weights
  alignas(64) float kv_[kTile / 2 * kChunk];  // keys, turned, or values, paired
  alignas(64) float best_[kTileSide], sums_[kTileSide * kLanes];
};

}  // namespace
}  // namespace hexad
#endif
