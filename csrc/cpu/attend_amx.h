// A block of query rows in bfloat16 on AMX, against the tiles of keys that any of them sees. Keys
// and values of several tiles are made ready in scratch; then a strip of 32 rows goes through them,
// S = Q K^T, softmax, O += P V, while all but the keys and values stays in the nearest cache.
#pragma once

#include "cpu/attend_tiles.h"
#include "cpu/sight_rows.h"

#if HEXAD_TILES

namespace hexad {
namespace {

constexpr int64_t kBlockNumbers = 32768;  // of a block's queries, and of its sums
constexpr int64_t kWideChunk = 128;       // dimensions of a tile of keys or values in scratch
constexpr int kStripNumbers = kStrip * kTile;
constexpr int kTileSteps = 16;  // steps of dimensions, of all tiles in scratch
constexpr int kStepFloats = kGroups * kTileFloats;
constexpr int kStripsInChunks = 4;
constexpr int kMostDue = 4;  // tiles of weights that scratch holds

// Rows that fit a block, a multiple of a strip.
HEXAD_INLINE int64_t amx_rows(int64_t head_dim, int64_t value_dim) {
  const int64_t wide = std::min(kDims, std::max(head_dim, value_dim));
  const int64_t fit = kBlockNumbers / (steps_of(wide) * kStepWidth) / kStrip * kStrip;
  return std::min<int64_t>(fit, wide > kWideChunk ? kStripsInChunks * kStrip : kMostRows);
}

class TileBlock {
 public:
  TileBlock(const Job<bf16>& job, int64_t begin, int64_t end)
      : job_(job),
        sight_(job, begin, end),
        q_step_(steps_of(std::min(kDims, job.head_dim)) * kStepWidth),
        o_step_((job.value_dim + kLanes - 1) / kLanes * kLanes),
        form_(form_of(job.mask.kind > MaskKind::boolean,
                      job.mask.kind == MaskKind::bf16 && job.mask.key == 1, job.scale, job.softcap,
                      job.slopes)) {}

  void run() {
    const int64_t rows = (sight_.rows + kStrip - 1) / kStrip * kStrip;
    std::fill(out_, out_ + rows * o_step_, 0.f);
    std::fill(best_, best_ + rows, -__builtin_inff());
    std::fill(sums_, sums_ + rows * kLanes, 0.f);
    if (sight_.first < sight_.last) {
      const Tiles tiles;
      const SubnormalsAreZero mode;
      if (job_.head_dim <= kDims) take_queries(0, job_.head_dim);
      walk();
    }
    finish();
  }

 private:
  void take_queries(int64_t at, int64_t dims) {
    for (int64_t r = 0; r < (sight_.rows + kStrip - 1) / kStrip * kStrip; ++r) {
      const bool there = r < sight_.rows;
      const bf16* q = job_.q;
      if (there) q += sight_.head[r] * job_.q_head + sight_.query[r] * job_.q_row + at;
      // A packed row's neighbours are not those of memory.
      const int64_t ahead = 8 * job_.q_row;
      for (int64_t d = 0; d < q_step_; d += kStepWidth) {
        __builtin_prefetch(q + ahead + d);
        _mm512_store_si512(q_ + r * q_step_ + d, load_32(q + d, there ? dims - d : 0));
      }
    }
  }

  // Tiles whose keys and values scratch holds at a time; more dimensions go by chunks, one tile.
  bool narrow() const { return std::max(job_.head_dim, job_.value_dim) <= kWideChunk; }
  int tiles_together() const {
    const int64_t wide = steps_of(std::max(job_.head_dim, job_.value_dim));
    return narrow() ? int(std::min<int64_t>(kMostTiles, kTileSteps / wide)) : 1;
  }

  struct Lists {
    const bf16 *k[kTile], *v[kTile];
  };
  Lists find(int t) const {
    const RowSight::Tile& sees = sight_.tiles[t];
    const int64_t base = base_ + t * kTile;
    Lists found;
    // Keys that no row sees: any readable ones do, their scores are hidden.
    for (int j = 0; j < kTile; ++j) {
      const int64_t key = base + std::clamp(j, sees.from, sees.upto - 1);
      found.k[j] = job_.k + key * job_.k_key, found.v[j] = job_.v + key * job_.v_key;
    }
    return found;
  }

  void walk() {
    const int together = tiles_together();
    for (base_ = sight_.first / kTile * kTile; base_ < sight_.last; base_ += together * kTile) {
      const int count = int(std::min<int64_t>(together, (sight_.last - base_ + kTile - 1) / kTile));
      sight_.approach(base_, count);
      narrow() ? at_once(count) : in_chunks();
    }
  }

  // Strip by strip through all tiles in scratch.
  void at_once(int count) {
    const int64_t steps = steps_of(job_.head_dim), parts = steps_of(job_.value_dim);
    const bool last = base_ + count * kTile >= sight_.last;
    bool special[kMostTiles], ready[kMostTiles] = {};
    // What a strip reads of a floating mask is asked for beside the strip before. A boolean one is
    // read at once: a pause of the tile unit before each strip costs more.
    const bool late = job_.mask.kind != MaskKind::boolean;
    for (int s = 0; !late && s * kStrip < sight_.rows; ++s) sight_.look(base_, count, s);
    for (int s = 0; s * kStrip < sight_.rows; ++s) {
      if (late) sight_.look(base_, count, s);
      Due due{s, 0, 0};
      for (int t = 0; t < count; ++t) {
        const RowSight::Strip& sees = sight_.tiles[t].strips[s];
        if (last) expect_output(s, t, count);
        if (sees.from < sees.upto) {
          if (!ready[t]) {
            const RowSight::Tile& tile = sight_.tiles[t];
            const Lists at = find(t);
            turn_keys(at.k, nullptr, 0, job_.head_dim, tile.from, tile.upto,
                      k_ + t * steps * kStepFloats);
            special[t] = pair_values(at.v, nullptr, 0, job_.value_dim, tile.from, tile.upto,
                                     v_ + t * parts * kStepFloats);
            settle();
            ready[t] = true;
          }
          add_scores(sees, s, 0, steps, k_ + t * steps * kStepFloats, s_, false);
          soften(t, s, s_, p_ + t % kMostDue * kStripNumbers, [&] { pay(due, special); });
        }
        due.upto = t + 1;
        if (due.upto - due.from == kMostDue) pay(due, special);
      }
      pay(due, special);
    }
  }

  // Asks for the part of a strip's output that falls to tile t of `count`.
  void expect_output(int strip, int t, int count) const {
    const int rows = sight_.rows_of(strip), first = strip * kStrip;
    for (int r = first + rows * t / count; r < first + rows * (t + 1) / count; ++r) {
      const bf16* out = job_.out + sight_.head[r] * job_.out_head + sight_.query[r] * job_.out_row;
      for (int64_t d = 0; d < job_.value_dim; d += kStepWidth)
        asm volatile("prefetchw %0" ::"m"(out[d]));
    }
  }

  // Tiles of a strip whose weights have not met their values yet.
  struct Due {
    int strip, from, upto;
  };
  void pay(Due& due, const bool* special) {
    const int64_t parts = steps_of(job_.value_dim);
    // Steps of 32 keys, each where its weights and its values lie.
    const bf16* p[2 * kMostDue];
    const float* v[2 * kMostDue];
    int n = 0;
    for (int t = due.from; t < due.upto; ++t) {
      const RowSight::Strip& sees = sight_.tiles[t].strips[due.strip];
      for (int i = sees.from / kStepWidth; i < steps_of(sees.upto); ++i) {
        p[n] = p_ + t % kMostDue * kStripNumbers + i * kStepWidth;
        v[n++] = v_ + t * parts * kStepFloats + i * 2 * parts * kTileFloats;
      }
    }
    add_values(p, v, n, due.strip, 0, job_.value_dim);
    for (int t = due.from; t < due.upto; ++t)
      if (sight_.tiles[t].strips[due.strip].upto && special[t])
        add_special(t, due.strip, find(t).v, 0, job_.value_dim, p_ + t % kMostDue * kStripNumbers);
    due.from = due.upto;
  }

  // Dimensions by chunks, strips one after another.
  void in_chunks() {
    const RowSight::Tile& tile = sight_.tiles[0];
    bool any = false;
    for (int s = 0; s * kStrip < sight_.rows; ++s) any |= sight_.look(base_, 1, s);
    if (!any) return;
    const Lists lists = find(0);
    const auto each_strip = [&](const auto& body) {
      for (int s = 0; s * kStrip < sight_.rows; ++s)
        if (tile.strips[s].from < tile.strips[s].upto)
          body(s, s_ + s * kStripNumbers, p_ + s * kStripNumbers);
    };
    for (int64_t at = 0; at < job_.head_dim; at += kWideChunk) {
      if (job_.head_dim > kDims && at % kDims == 0)
        take_queries(at, std::min(kDims, job_.head_dim - at));
      const int64_t dims = std::min(kWideChunk, job_.head_dim - at);
      turn_keys(lists.k, nullptr, at, dims, tile.from, tile.upto, k_);
      settle();
      each_strip([&](int s, float* scores, bf16*) {
        add_scores(tile.strips[s], s, at % kDims, steps_of(dims), k_, scores, at > 0);
      });
    }
    each_strip([&](int s, float* scores, bf16* p) { soften(0, s, scores, p, [] {}); });
    for (int64_t at = 0; at < job_.value_dim; at += kWideChunk) {
      const int64_t dims = std::min(kWideChunk, job_.value_dim - at);
      const bool special = pair_values(lists.v, nullptr, at, dims, tile.from, tile.upto, v_);
      settle();
      each_strip([&](int s, float*, bf16* p) {
        const bf16* halves[] = {p, p + kStepWidth};
        const float* values[] = {v_, v_ + 2 * steps_of(dims) * kTileFloats};
        const int from = tile.strips[s].from / kStepWidth;
        const int upto = int(steps_of(tile.strips[s].upto));
        add_values(halves + from, values + from, upto - from, s, at, dims);
        if (special) add_special(0, s, lists.v, at, dims, p);
      });
    }
  }

  // s[row][key], over dimensions from `at` of the queries in scratch on.
  void add_scores(const RowSight::Strip& sees, int strip, int64_t at, int64_t steps, const float* k,
                  float* s, bool more) const {
    const bf16* q = q_ + strip * kStrip * q_step_ + at;
    const bool both = sight_.rows_of(strip) > kTileSide;
    for (int j = sees.from / kStepWidth * kStepWidth; j < sees.upto; j += kStepWidth) {
      const float* keys = k + j / kTileSide * kTileFloats;
      both ? score<true>(q, keys, steps, s + j, more) : score<false>(q, keys, steps, s + j, more);
    }
  }

  template <bool kBoth>
  HEXAD_INLINE void score(const bf16* q, const float* k, int64_t steps, float* s, bool more) const {
    constexpr int64_t kStride = kTile * sizeof(float);
    const int64_t stride = q_step_ * sizeof(bf16);
    float* lower = s + kTileSide * kTile;
    if (more) {
      _tile_loadd(0, s, kStride);
      _tile_loadd(1, s + kTileSide, kStride);
      if (kBoth) {
        _tile_loadd(2, lower, kStride);
        _tile_loadd(3, lower + kTileSide, kStride);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if (kBoth) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    for (int64_t i = 0; i < steps; ++i) {
      _tile_loadd(4, q + i * kStepWidth, stride);
      _tile_stream_loadd(6, k + i * kGroups * kTileFloats, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_stream_loadd(7, k + (i * kGroups + 1) * kTileFloats, 64);
      _tile_dpbf16ps(1, 4, 7);
      if (kBoth) {
        _tile_loadd(5, q + i * kStepWidth + kTileSide * q_step_, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, s, kStride);
    _tile_stored(1, s + kTileSide, kStride);
    if (kBoth) {
      _tile_stored(2, lower, kStride);
      _tile_stored(3, lower + kTileSide, kStride);
    }
  }

  // out_[row][dimension] += the weighted values of n steps, for dimensions [at, at + dims).
  void add_values(const bf16* const* p, const float* const* v, int n, int strip, int64_t at,
                  int64_t dims) {
    if (!n) return;
    float* out = out_ + strip * kStrip * o_step_ + at;
    const bool both = sight_.rows_of(strip) > kTileSide;
    for (int64_t d = 0; d < dims; d += kStepWidth, out += kStepWidth) {
      const int64_t skip = d / kTileSide * kTileFloats;
      if (dims - d > kTileSide)
        both ? weigh<true, true>(p, v, n, skip, out) : weigh<false, true>(p, v, n, skip, out);
      else
        both ? weigh<true, false>(p, v, n, skip, out) : weigh<false, false>(p, v, n, skip, out);
    }
  }

  template <bool kBoth, bool kBroad>
  HEXAD_INLINE void weigh(const bf16* const* p, const float* const* v, int n, int64_t skip,
                          float* out) const {
    constexpr int64_t kStride = kTile * sizeof(bf16);
    const int64_t stride = o_step_ * sizeof(float);
    float* lower = out + kTileSide * o_step_;
    _tile_loadd(0, out, stride);
    if (kBroad) _tile_loadd(1, out + kTileSide, stride);
    if (kBoth) _tile_loadd(2, lower, stride);
    if (kBoth && kBroad) _tile_loadd(3, lower + kTileSide, stride);
    for (int i = 0; i < n; ++i) {
      _tile_loadd(4, p[i], kStride);
      _tile_stream_loadd(6, v[i] + skip, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (kBroad) {
        _tile_stream_loadd(7, v[i] + skip + kTileFloats, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (kBoth) {
        _tile_loadd(5, p[i] + kTileSide * kTile, kStride);
        _tile_dpbf16ps(2, 5, 6);
        if (kBroad) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, stride);
    if (kBroad) _tile_stored(1, out + kTileSide, stride);
    if (kBoth) _tile_stored(2, lower, stride);
    if (kBoth && kBroad) _tile_stored(3, lower + kTileSide, stride);
  }

  // Scores of a strip become weights; before(), before its earlier sums are to fall.
  template <class Before>
  void soften(int t, int strip, float* s, bf16* p, const Before& before) {
    const float scale = job_.scale, softcap = job_.softcap;
    const int64_t base = base_ + t * kTile;
    const Mask& mask = job_.mask;
    // Where a mask can be read as it lies.
    const bool whole = mask.key == 1 && base + kTile <= job_.count;
    switch (form_) {
      case Form::plain: {
        const PlainScore plain(scale);
        soften(t, strip, s, p, before, [&](int, float*) -> const PlainScore& { return plain; });
        break;
      }
      case Form::capped: {
        const CappedScore capped(scale, softcap);
        soften(t, strip, s, p, before, [&](int, float*) -> const CappedScore& { return capped; });
        break;
      }
      case Form::sloped:
        soften(t, strip, s, p, before,
               [&](int r, float*) { return SlopedScore(scale, place(base, r)); });
        break;
      case Form::biased_bf16:
        if (whole) {
          BiasedScore<bf16> biased(scale, nullptr);
          soften(t, strip, s, p, before, [&](int r, float*) -> const BiasedScore<bf16>& {
            const bf16* bias = static_cast<const bf16*>(mask.data) + sight_.mask_at(r) + base;
            sight_.ask<bf16>(base, r);
            biased.bias = bias;
            return biased;
          });
          break;
        }
        [[fallthrough]];
      case Form::biased:
        if (whole && mask.kind == MaskKind::f32) {
          BiasedScore<float> biased(scale, nullptr);
          soften(t, strip, s, p, before, [&](int r, float*) -> const BiasedScore<float>& {
            const float* bias = static_cast<const float*>(mask.data) + sight_.mask_at(r) + base;
            sight_.ask<float>(base, r);
            biased.bias = bias;
            return biased;
          });
          break;
        }
        soften(t, strip, s, p, before, [&](int r, float*) {
          sight_.read_bias(base, r, bias_);
          return BiasedScore<float>(scale, bias_);
        });
        break;
      case Form::general:
        soften(t, strip, s, p, before, [&](int r, float* row) {
          const bool biased = mask.kind > MaskKind::boolean;
          if (biased) sight_.read_bias(base, r, bias_);
          return general(row, scale, softcap, place(base, r), biased ? bias_ : nullptr);
        });
    }
    settle();
  }

  Place place(int64_t base, int r) const {
    return {job_.slopes ? job_.slopes[sight_.head[r]] : 0,
            float(sight_.query[r] + job_.offset - base)};
  }

  // score_of(r, s): the Score of a row.
  template <class Before, class ScoreOf>
  HEXAD_INLINE void soften(int t, int strip, float* s, bf16* p, const Before& before,
                           const ScoreOf& score_of) {
    sight_.tiles[t].strips[strip].plain ? soften<true>(t, strip, s, p, before, score_of)
                                        : soften<false>(t, strip, s, p, before, score_of);
  }

  template <bool kPlain, class Before, class ScoreOf>
  HEXAD_INLINE void soften(int t, int strip, float* s, bf16* p, const Before& before,
                           const ScoreOf& score_of) {
    const int first = strip * kStrip;
    const uint64_t* words = sight_.tiles[t].words;
    using Score = std::decay_t<decltype(score_of(0, s))>;
    if constexpr (Score::kLasting)
      for (int n = 0; n < sight_.rows_of(strip); n += kLanes)
        if (__builtin_expect(unreferred(best_ + first + n), 0))
          refer<kPlain, Score>(first + n, std::min(kLanes, sight_.rows_of(strip) - n), words,
                               s + n * kTile, score_of);
    for (int r = first; r < first + sight_.rows_of(strip); ++r, s += kTile, p += kTile) {
      // A product whose sums nobody reads, to keep the unit awake.
      if (Score::kLong && r == first + kTileSide) _tile_dpbf16ps(3, 5, 7);
      const uint64_t seen = kPlain ? ~uint64_t(0) : words[r];
      const float fall = soften_row<kPlain, Score::kLasting>(score_of(r, s), s, seen, best_ + r,
                                                             sums_ + r * kLanes, p);
      if (__builtin_expect(fall != 1, 0)) {
        before();
        float* out = out_ + r * o_step_;
        for (int64_t d = 0; d < o_step_; d += kLanes) store(out + d, load(out + d) * set1(fall));
      }
    }
  }

  // References of up to sixteen rows that meet their first keys: what softmax would do by row.
  template <bool kPlain, class Score, class ScoreOf>
  __attribute__((noinline)) void refer(int first, int count, const uint64_t* words, float* s,
                                       const ScoreOf& score_of) {
    vf tops[kLanes];
    alignas(64) float above[kLanes] = {};
    for (int i = 0; i < kLanes; ++i) {
      const int r = std::min(i, count - 1);
      const Score score = score_of(first + r, s);
      above[i] = score.headroom;
      tops[i] = Softmax<Score>{score}.top(s + r * kTile, kPlain ? ~uint64_t(0) : words[first + r]);
    }
    take_references(tops, above, count, best_ + first);
  }

  // What infinities and NaN among the values add to the rows that see them.
  __attribute__((noinline)) void add_special(int t, int strip, const bf16* const* v, int64_t at,
                                             int64_t dims, const bf16* p) {
    const RowSight::Tile& tile = sight_.tiles[t];
    for (int j = tile.from; j < tile.upto; ++j)
      for (int64_t d = 0; d < dims; ++d) {
        const bf16 value = v[j][at + d];
        if ((value.raw & 0x7f80) != 0x7f80) continue;
        for (int i = 0; i < sight_.rows_of(strip); ++i) {
          const int r = strip * kStrip + i;
          if (tile.strips[strip].plain || tile.words[r] >> j & 1)
            out_[r * o_step_ + at + d] += to_float(p[i * kTile + j]) * to_float(value);
        }
      }
  }

  void finish() const {
    for (int n = 0; n < sight_.rows; n += kLanes) {
      const int count = std::min(kLanes, sight_.rows - n);
      alignas(64) float total[kLanes], factor[kLanes], lse[kLanes];
      for (int i = 0; i < kLanes; i += 4) {
        const float* t = sums_ + (n + i) * kLanes;
        const f32x4 four =
            sum_each(load(t), load(t + kLanes), load(t + 2 * kLanes), load(t + 3 * kLanes));
        memcpy(total + i, &four, sizeof four);
      }
      alignas(64) float sinks[kLanes] = {};
      for (int i = 0; job_.sinks && i < count; ++i) sinks[i] = job_.sinks[sight_.head[n + i]];
      close_softmax(form_, best_ + n, total, job_.sinks ? sinks : nullptr, factor, lse);
      for (int i = 0; i < count; ++i) {
        const int64_t query = sight_.query[n + i], head = sight_.head[n + i];
        bf16* out = job_.out + head * job_.out_head + query * job_.out_row;
        if (job_.lse) job_.lse[head * job_.lse_head + query * job_.lse_row] = lse[i];
        const float* sums = out_ + (n + i) * o_step_;
        write_row(out, sums, factor[i], job_.value_dim);
      }
    }
  }

  const Job<bf16>& job_;
  RowSight sight_;
  const int64_t q_step_, o_step_;
  const Form form_;
  alignas(64) float bias_[kTile];  // of a row
  alignas(64) float best_[kMostRows], sums_[kMostRows * kLanes];
  alignas(64) bf16 q_[kBlockNumbers];                     // queries
  alignas(64) float out_[kBlockNumbers];                  // sums, not yet divided
  alignas(64) float s_[kStripsInChunks * kStripNumbers];  // scores
  alignas(64) bf16 p_[kStripsInChunks * kStripNumbers];   // weights
  int64_t base_;                                          // of the tiles in scratch
  alignas(64) float k_[kTileSteps * kStepFloats];         // keys, turned
  alignas(64) float v_[kTileSteps * kStepFloats];         // values, paired
};

}  // namespace
}  // namespace hexad
#endif
