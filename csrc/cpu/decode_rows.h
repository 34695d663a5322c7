// The query heads that share one head of a cache, over its tiles: the softmax between the two
// products of cpu/decode_tile.h, carried from tile to tile as in cpu/attend.h.
#pragma once

#include "cpu/decode_bytes.h"

namespace hexad {
namespace {

constexpr int kBlock = 32;  // query heads in a block, at most
constexpr int kAhead = 8;
constexpr int64_t kRowFloats = 8192;  // room for a block's queries, and for its sums

// One sequence and one head of its cache.
template <class T, class C>
struct Group {
  const T* q;
  T* out;
  float* lse;
  int64_t q_head, out_head, lse_head;  // strides
  const float *slopes, *sinks;         // null: none
  int64_t slopes_head, sinks_head;
  Cache<C> cache;
  int64_t lo, hi;  // keys that the newest position sees
  int64_t head_dim, value_dim;
  float scale, softcap;  // softcap 0: none
};

// Query heads that fit a block of scratch; the doors refuse a head dimension that none fits.
HEXAD_INLINE int64_t block_rows(int64_t head_dim, int64_t value_dim) {
  return std::min<int64_t>(kBlock, kRowFloats / std::max(padded(head_dim), padded(value_dim)));
}

template <class T, class C>
class Rows {
 public:
  Rows(const Group<T, C>& group, int64_t begin, int64_t end)
      : g_(group),
        begin_(begin),
        rows_(int(end - begin)),
        q_step_(padded(group.head_dim)),
        o_step_(padded(group.value_dim)) {}

  // following(tile) finds the first tile of what is done after this, if anything is.
  template <class Following>
  void run(const Following& following) {
    std::fill(out_, out_ + rows_ * o_step_, 0.f);
    std::fill(best_, best_ + kBlock, -__builtin_inff());
    std::fill(total_, total_ + kBlock, 0.f);
    if (g_.lo < g_.hi) {
      take_queries();
      walk(following);
    }
    finish();
  }

 private:
  void take_queries() {
    for (int64_t r = 0; r < rows_; ++r) {
      const T* q = g_.q + (begin_ + r) * g_.q_head;
      for (int64_t d = 0; d < g_.head_dim; d += kLanes) {
        const int64_t n = g_.head_dim - d;
        const vf x = n >= kLanes ? load(q + d) : load_first(q + d, n);
        if (kPaired<C>)
          store(q_ + r * q_step_ + d, x);
        else
          store(q_ + r * q_step_ + d, x * set1(g_.scale));
      }
    }
  }

  template <class Following>
  void walk(const Following& following) {
    int64_t base = g_.lo / kTile * kTile;
    tiles_[0].locate(g_.cache, base, g_.lo, g_.hi);
    for (int here = 0; base < g_.hi; here ^= 1) {
      const Tile<C>& tile = tiles_[here];
      base += kTile;
      Tile<C>* next = &tiles_[here ^ 1];
      if (base < g_.hi) {
        next->locate(g_.cache, base, g_.lo, g_.hi);
        touch_pages(g_.cache, base + kTile, std::min(base + 2 * kTile, g_.hi));
      } else if (!following(*next)) {
        next = nullptr;
      }
      if constexpr (std::is_same<C, int8_t>::value) tiles_[here].take_scales(g_.cache);
      Ahead ahead = next ? next->ahead(g_.head_dim, g_.value_dim) : Ahead();
      scores(tile, ahead);
      place(tile);
      for (int r = 0; r < rows_; r += kLanes) soften(tile, ahead, r, std::min(rows_ - r, kLanes));
      values(tile, ahead);
      ahead.rest();
    }
  }

  void scores(const Tile<C>& tile, Ahead& next) {
    for (int r = 0; r < rows_; r += kTogether)
      with_rows(std::min(kTogether, rows_ - r), [&](auto count) {
        if constexpr (std::is_same<C, int8_t>::value)
          return score_bytes<decltype(count)::value>(q_ + r * q_step_, q_step_, g_.head_dim, tile.k,
                                                     next, tile.begin, tile.end, p_ + r * kTile);
        else
          for (int j = tile.begin / kRegLanes * kRegLanes; j < tile.end; j += kRegLanes)
            score<decltype(count)::value, C>(q_ + r * q_step_, q_step_, g_.head_dim, tile.k + j,
                                             next, p_ + r * kTile + j);
      });
  }

  // What holds for the tile whatever the row: how far ahead keys are, and which are hidden.
  void place(const Tile<C>& tile) {
    if (g_.slopes)
      for (int n = 0; n < kTile / kLanes; ++n)
        ahead_[n] = set1(float(tile.base + n * kLanes - (g_.hi - 1))) + to_float(iota());
    whole_ = tile.begin == 0 && tile.end == kTile;
    if (whole_) return;
    for (int n = 0; n < kTile / kLanes; ++n) {
      const vi lane = iota() + set1i(n * kLanes);
      const vi inside = less_int(lane, set1i(tile.end)) & less_int(set1i(tile.begin - 1), lane);
      hide_[n] = inside ^ set1i(-1);
    }
  }

  // Scores of rows r .. r + count - 1 become weights exp(s - m).
  void soften(const Tile<C>& tile, Ahead& next, int at, int count) {
    float was[kLanes], fell[kLanes];
    std::fill(was, was + kLanes, 0.f), std::fill(fell, fell + kLanes, 0.f);
    for (int i = 0; i < count; ++i) {
      const int r = at + i;
      vf s[kTile / kLanes];
      adjust(tile, r, s);
      was[i] = best_[r];
      best_[r] = std::max(best_[r], max_across(larger(larger(s[0], s[1]), larger(s[2], s[3]))));
      // Where the best stays, -inf included, the factor is 1.
      fell[i] = best_[r] == was[i] ? 0.f : was[i] - best_[r];
    }
    store(alpha_ + at, exp_falling(load(fell)));
    for (int i = 0; i < count; ++i) {
      weights(tile, at + i);
      next.ask(kAhead * 64);  // the memory is not to stand still meanwhile
    }
  }

  HEXAD_INLINE void adjust(const Tile<C>& tile, int r, vf* s) {
    float* p = p_ + r * kTile;
    const vf slope = set1(g_.slopes ? g_.slopes[(begin_ + r) * g_.slopes_head] : 0.f);
#pragma GCC unroll 4
    for (int n = 0; n < kTile / kLanes; ++n) {
      s[n] = load(p + n * kLanes);
      if (kPaired<C>) s[n] = s[n] * set1(g_.scale);
      if (std::is_same<C, int8_t>::value) s[n] = s[n] * load(tile.k_scale + n * kLanes);
      if (g_.softcap > 0) s[n] = soft_cap(s[n], g_.softcap);
      if (g_.slopes) s[n] = s[n] + slope * ahead_[n];
      if (!whole_) s[n] = select(hide_[n], set1(-__builtin_inff()), s[n]);
      store(p + n * kLanes, s[n]);
    }
  }

  HEXAD_INLINE void weights(const Tile<C>& tile, int r) {
    float* p = p_ + r * kTile;
    const vf m = set1(best_[r] == -__builtin_inff() ? 0.f : best_[r]);
    vf w[kTile / kLanes];
#pragma GCC unroll 4
    for (int n = 0; n < kTile / kLanes; ++n) {
      w[n] = exp_falling(load(p + n * kLanes) - m);
      if (!whole_) w[n] = select(hide_[n], zero(), w[n]);
      if constexpr (kPaired<C>)
        store(pairs_ + r * kTile + n * kLanes, w[n]);
      else if constexpr (std::is_same<C, int8_t>::value)
        store(p + n * kLanes, w[n] * load(tile.v_scale + n * kLanes));
      else
        store(p + n * kLanes, w[n]);
    }
    total_[r] = total_[r] * alpha_[r] + sum((w[0] + w[1]) + (w[2] + w[3]));
  }

  // out_[r] = out_[r] * alpha + sum over visible keys of weight * value.
  void values(const Tile<C>& tile, Ahead& next) {
    for (int r = 0; r < rows_; r += kTogether)
      with_rows(std::min(kTogether, rows_ - r), [&](auto count) {
        const auto* p = weights_of(r);
        weigh<decltype(count)::value>(out_ + r * o_step_, o_step_, alpha_ + r, p, tile.v, next,
                                      g_.value_dim, tile.begin, tile.end);
      });
  }

  auto weights_of(int r) const {
    if constexpr (kPaired<C>)
      return pairs_ + r * kTile;
    else
      return p_ + r * kTile;
  }

  void finish() {
    for (int r = 0; r < rows_; r += kLanes) {
      const int count = std::min(rows_ - r, kLanes);
      std::fill(alpha_ + r, alpha_ + r + kLanes, 1.f);
      if (g_.sinks) join_sinks(r, count);
      float lse[kLanes];
      store(lse, load(best_ + r) + log(load(total_ + r)));
      for (int j = 0; j < count; ++j) write(r + j, lse[j]);
    }
  }

  // One more key, whose value is 0, in each row's softmax.
  void join_sinks(int at, int count) {
    float fell[kLanes] = {}, sink[kLanes] = {};
    for (int i = 0; i < count; ++i) {
      const float was = best_[at + i], s = g_.sinks[(begin_ + at + i) * g_.sinks_head];
      best_[at + i] = std::max(was, s);
      const float base = best_[at + i] == -__builtin_inff() ? 0.f : best_[at + i];
      fell[i] = was - base, sink[i] = s - base;
    }
    const vf alpha = exp_falling(load(fell));
    store(alpha_ + at, alpha);
    store(total_ + at, load(total_ + at) * alpha + exp_falling(load(sink)));
  }

  void write(int64_t r, float lse) {
    const bool nothing = total_[r] == 0;
    g_.lse[(begin_ + r) * g_.lse_head] = nothing ? -__builtin_inff() : lse;
    const vf total = set1(nothing ? 1.f : total_[r]), alpha = set1(alpha_[r]);
    const float* sums = out_ + r * o_step_;
    T* out = g_.out + (begin_ + r) * g_.out_head;
    int64_t d = 0;
    for (; d + kLanes <= g_.value_dim; d += kLanes) store(out + d, load(sums + d) * alpha / total);
    if (d < g_.value_dim) store_first(out + d, load(sums + d) * alpha / total, g_.value_dim - d);
  }

  const Group<T, C>& g_;
  const int64_t begin_;
  const int rows_;
  const int64_t q_step_, o_step_;
  bool whole_;                           // the tile has no hidden keys
  vi hide_[kTile / kLanes];              // else these are hidden
  vf ahead_[kTile / kLanes];             // how far keys are ahead of the newest: not above 0
  Tile<C> tiles_[2];                     // the one at work and the next
  alignas(64) Query<C> q_[kRowFloats];   // queries; scaled, but for pairs
  alignas(64) float out_[kRowFloats];    // sums, not yet divided
  alignas(64) float p_[kBlock * kTile];  // scores, then weights
  alignas(64) bf16 pairs_[kPaired<C> ? kBlock * kTile : 1];  // weights in pairs
  float best_[kBlock], total_[kBlock], alpha_[kBlock];
};

}  // namespace
}  // namespace hexad
