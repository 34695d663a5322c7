// What a tile of attention's backward sees: up to kQueries rows of one head against kKeys keys.
#pragma once

#include "cpu/tile_pack.h"
#include "op/attention_backward.h"

namespace hexad {
namespace {

template <class T, int kQueries, int kKeys>
class GradientSight {
 public:
  explicit GradientSight(const AttentionBackwardArgs& a) : a_(a) {}

  void find_head(int64_t b, int64_t head) {
    q_ = static_cast<const T*>(a_.q) + b * a_.q_stride[0] + head * a_.q_stride[1];
    g_ = static_cast<const T*>(a_.grad_out) + b * a_.grad_out_stride[0] +
         head * a_.grad_out_stride[1];
    lse_ = a_.lse + b * a_.lse_stride[0] + head * a_.lse_stride[1];
    delta_ = a_.workspace + a_.slots * a_.room + (b * a_.heads + head) * a_.rows;
    mask_ = b * a_.mask_stride[0] + head * a_.mask_stride[1];
  }

  // Whether any of the rows from `first` sees any of the keys from `base`.
  bool sees(int64_t first, int64_t base) const {
    const int64_t last = std::min<int64_t>(first + kQueries, a_.rows) - 1;
    return lo(first) < base + kKeys && hi(last) > base;
  }

  static void write(T* to, const float* from, int64_t n) {
    int64_t d = 0;
    for (; d + kLanes <= n; d += kLanes) store(to + d, load(from + d));
    if (d < n) store_first(to + d, load(from + d), n - d);
  }

 protected:
  void find_keys(int64_t b, int64_t h, int64_t base) {
    k_ = static_cast<const T*>(a_.k) + b * a_.k_stride[0] + h * a_.k_stride[1] +
         base * a_.k_stride[2];
    v_ = static_cast<const T*>(a_.v) + b * a_.v_stride[0] + h * a_.v_stride[1] +
         base * a_.v_stride[2];
    base_ = base;
    count_ = std::min<int64_t>(kKeys, a_.keys - base);
  }

  void find_queries(int64_t first) {
    first_ = first;
    rows_ = std::min<int64_t>(kQueries, a_.rows - first);
    any_dead_ = false;
    for (int64_t r = 0; r < rows_; ++r) any_dead_ = any_dead_ || dead(r);
  }

  // The keys that row i sees as causality and the window say, from `lo` to before `hi`.
  int64_t lo(int64_t i) const {
    return a_.left < 0 ? 0 : std::max<int64_t>(0, i + a_.offset - a_.left);
  }
  int64_t hi(int64_t i) const {
    return a_.right < 0 ? a_.keys : std::min(a_.keys, i + a_.offset + a_.right + 1);
  }
  // A row that sees nothing at all.
  bool dead(int64_t r) const { return lse_[(first_ + r) * a_.lse_stride[2]] == -__builtin_inff(); }

  // What the rows see of the tile; false if that is all of it. `whole`: no row or key of the tile's
  // room is missing.
  bool find_visible(bool whole) {
    if (whole && !a_.mask && !any_dead_ && lo(first_ + rows_ - 1) <= base_ &&
        hi(first_) >= base_ + count_)
      return false;
    for (int64_t r = 0; r < kQueries; ++r) {
      const bool there = r < rows_;
      from_[r] = there ? int(std::clamp<int64_t>(lo(first_ + r) - base_, 0, kKeys)) : 0;
      upto_[r] = there ? int(std::clamp<int64_t>(hi(first_ + r) - base_, 0, kKeys)) : 0;
      end_[r] = there && dead(r) ? 0 : upto_[r];
    }
    return true;
  }

  // 0 * NaN would let a hidden pair be seen.
  bool finite() const {
    return all_finite(q_ + first_ * a_.q_stride[2], a_.q_stride[2], rows_, a_.head_dim) &&
           all_finite(g_ + first_ * a_.grad_out_stride[2], a_.grad_out_stride[2], rows_,
                      a_.value_dim) &&
           all_finite(k_, a_.k_stride[2], count_, a_.head_dim);
  }

  // The mask of a row over keys [from, upto) of the tile as something to add; -inf hides.
  void read_mask(int64_t r, int64_t from, int64_t upto, float* add) const {
    for (int64_t j = from; j < upto; ++j) {
      const int64_t e = mask_ + (first_ + r) * a_.mask_stride[2] + (base_ + j) * a_.mask_stride[3];
      if (a_.mask_kind == 0)
        add[j - from] = static_cast<const uint8_t*>(a_.mask)[e] ? 0.f : -__builtin_inff();
      else if (a_.mask_kind == 1)
        add[j - from] = static_cast<const float*>(a_.mask)[e];
      else
        add[j - from] = to_float(static_cast<const bf16*>(a_.mask)[e]);
    }
  }

  bool visible(int64_t r, int64_t j) const {
    if (r >= rows_ || j < from_[r] || j >= end_[r]) return false;
    if (!a_.mask) return true;
    float add;
    read_mask(r, j, j + 1, &add);
    return add != -__builtin_inff();
  }

  const AttentionBackwardArgs& a_;
  // The head, the keys and the queries at hand.
  const T *q_, *g_, *k_, *v_;
  const float *lse_, *delta_;
  int64_t mask_, base_, count_, first_, rows_;
  bool any_dead_;
  int from_[kQueries], upto_[kQueries];  // the keys of the tile that a row's position lets it see
  int end_[kQueries];                    // upto_, 0 for a row that sees nothing at all
};

}  // namespace
}  // namespace hexad
