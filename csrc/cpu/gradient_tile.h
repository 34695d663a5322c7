// One tile of attention's backward: up to kQueries rows of one head against kKeys keys.
#pragma once

#include "cpu/gradient_sight.h"
#include "cpu/tile_weights.h"

namespace hexad {
namespace {

template <class T, class U>
class GradientTile : public GradientSight<T, Weights<U>::kQueries, Weights<U>::kKeys> {
  using Sight = GradientSight<T, Weights<U>::kQueries, Weights<U>::kKeys>;

 public:
  static constexpr int kQueries = Weights<U>::kQueries, kKeys = Weights<U>::kKeys;
  // float32 is summed where it belongs, if its rows are whole vectors.
  static bool in_place(const AttentionBackwardArgs& a) {
    return sizeof(T) == sizeof(float) && a.head_dim % kLanes == 0;
  }
  static int64_t padded(int64_t rows) { return rows; }

  GradientTile(const AttentionBackwardArgs& a, float* room)
      : Sight(a),
        d_(round_up(a.head_dim, kLanes)),
        dv_(round_up(a.value_dim, kLanes)),
        room_(room),
        turned_k_(take(kKeys * d_)),
        turned_v_(take(kKeys * dv_)),
        rows_k_(take(kKeys * round_up(d_, kPanel))),
        grad_k_(take(kKeys * d_)),
        grad_v_(take(kKeys * dv_)),
        rows_q_(take(kQueries / U::kPer * round_up(d_, kPanel))),
        rows_g_(take(kQueries / U::kPer * round_up(dv_, kPanel))),
        along_q_(take(kQueries * d_)),
        along_g_(take(kQueries * dv_)),
        scores_(take(kStrip * kKeys)),
        products_(take(kStrip * kKeys)),
        weights_(take(Weights<U>::kRoom)) {}

  int64_t columns() const { return d_; }
  float* rest() const { return room_; }  // scratch that the tile leaves

  HEXAD_APART void take_keys(int64_t b, int64_t h, int64_t base) {
    this->find_keys(b, h, base);
    turned_k_at_ = pack_turned<U>(turned_k_, k_, a_.k_stride[2], count_, kKeys, a_.head_dim);
    turned_v_at_ = pack_turned<U>(turned_v_, v_, a_.v_stride[2], count_, kKeys, a_.value_dim);
    rows_k_at_ = pack_rows<U>(rows_k_, k_, a_.k_stride[2], count_, kKeys, a_.head_dim);
  }

  HEXAD_APART void take_queries(int64_t first) {
    const int64_t q_row = a_.q_stride[2], g_row = a_.grad_out_stride[2];
    this->find_queries(first);
    const T *q = q_ + first * q_row, *g = g_ + first * g_row;
    const int64_t room = round_up(rows_, U::kPer);
    rows_q_at_ = pack_rows<U>(rows_q_, q, q_row, rows_, room, a_.head_dim);
    rows_g_at_ = pack_rows<U>(rows_g_, g, g_row, rows_, room, a_.value_dim);
    along_q_at_ = pack_along<U>(along_q_, q, q_row, rows_, a_.head_dim);
    along_g_at_ = pack_along<U>(along_g_, g, g_row, rows_, a_.value_dim);
  }

  void clear_keys() {
    std::fill_n(grad_k_, kKeys * d_, 0.f);
    std::fill_n(grad_v_, kKeys * dv_, 0.f);
  }

  HEXAD_APART void write_keys(int64_t b, int64_t h, int64_t base) const {
    T* k = static_cast<T*>(a_.grad_k) + b * a_.grad_k_stride[0] + h * a_.grad_k_stride[1];
    T* v = static_cast<T*>(a_.grad_v) + b * a_.grad_v_stride[0] + h * a_.grad_v_stride[1];
    for (int64_t j = 0; j < std::min<int64_t>(kKeys, a_.keys - base); ++j) {
      this->write(k + (base + j) * a_.grad_k_stride[2], grad_k_ + j * d_, a_.head_dim);
      this->write(v + (base + j) * a_.grad_v_stride[2], grad_v_ + j * dv_, a_.value_dim);
    }
  }

  HEXAD_APART void write_queries(T* to, int64_t row_step, const float* from, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) this->write(to + i * row_step, from + i * d_, a_.head_dim);
  }

  // Adds what the tile gives to its keys' gradients and, at `grad_q`, to its rows'.
  template <bool kForKeys, bool kForQueries>
  void visit(float* grad_q, int64_t grad_q_step) {
    const bool partial = this->find_visible(rows_ % U::kPer == 0 && count_ == kKeys);
    int64_t begin[kQueries / kStrip], end[kQueries / kStrip];
    for (int64_t r = 0; r < rows_; r += kStrip) {
      const int64_t n = std::min<int64_t>(kStrip, rows_ - r);
      int64_t from = 0, upto = kKeys;
      bool hides = partial;
      if (partial) {
        from = kKeys, upto = 0, hides = a_.mask || n % U::kPer;
        for (int64_t i = r; i < r + n; ++i) {
          hides = hides || from_[i] > 0 || end_[i] < kKeys;
          if (from_[i] < upto_[i])
            from = std::min<int64_t>(from, from_[i]), upto = std::max<int64_t>(upto, upto_[i]);
        }
        from = from / 32 * 32, upto = round_up(upto, 32);
      }
      begin[r / kStrip] = from, end[r / kStrip] = upto;
      if (from >= upto) continue;
      product<U>(scores_, kKeys, true, row(along_q_at_, r), turned_k_at_, from, upto, n,
                 (a_.head_dim + U::kPer - 1) / U::kPer);
      product<U>(products_, kKeys, true, row(along_g_at_, r), turned_v_at_, from, upto, n,
                 (a_.value_dim + U::kPer - 1) / U::kPer);
      if (hides)
        a_.softcap > 0 ? weigh<true, true>(r, n, from, upto) : weigh<true, false>(r, n, from, upto);
      else
        a_.softcap > 0 ? weigh<false, true>(r, n, from, upto)
                       : weigh<false, false>(r, n, from, upto);
    }
    if (partial && !this->finite())
      return visit_carefully(kForKeys, grad_q, grad_q_step, begin, end);
    if (kForKeys) {
      if (!partial) for_keys(0, kKeys, 0, rows_);
      for (int64_t j = 0; partial && j < count_; j += kStrip) {
        const int64_t n = std::min<int64_t>(kStrip, count_ - j);
        int64_t from, upto;
        find_rows(j, n, &from, &upto);
        if (from < upto) for_keys(j, n, from, upto);
      }
    }
    if (kForQueries) {
      const int64_t step = partial ? int64_t(kStrip) : rows_;
      for (int64_t r = 0; r < rows_; r += step) {
        const int64_t from = begin[r / kStrip], upto = end[r / kStrip];
        if (from < upto)
          product<U>(grad_q + r * grad_q_step, grad_q_step, false, weights_.rows(r, from),
                     rows_k_at_.from(from / U::kPer), 0, d_, std::min(step, rows_ - r),
                     (upto - from) / U::kPer);
      }
    }
  }

 private:
  static constexpr int kStrip = 16;  // rows whose scores are made together, or keys that share sums

  using Sight::a_, Sight::q_, Sight::g_, Sight::k_, Sight::v_, Sight::lse_, Sight::delta_;
  using Sight::base_, Sight::count_, Sight::first_, Sight::rows_;
  using Sight::from_, Sight::upto_, Sight::end_;

  float* take(int64_t n) {
    float* p = room_;
    room_ += round_up(n, kLanes);
    return p;
  }

  static Factor row(const Factor& f, int64_t r) { return {f.at + r * f.row, f.row, f.step}; }
  static Factor across(const float* w, int64_t unit, int64_t key) {
    return {reinterpret_cast<const char*>(w + unit * kKeys + key), 4, kKeys * 4};
  }

  // The rows from the first to the last that see any of keys j .. j + n - 1.
  void find_rows(int64_t j, int64_t n, int64_t* from, int64_t* upto) const {
    *from = rows_, *upto = 0;
    for (int64_t r = 0; r < rows_; ++r)
      if (from_[r] < upto_[r] && from_[r] < j + n && upto_[r] > j)
        *from = std::min(*from, r), *upto = r + 1;
  }

  // Keys j .. j + n - 1 take what rows [from, upto) give them.
  void for_keys(int64_t j, int64_t n, int64_t from, int64_t upto) {
    const int64_t unit = from / U::kPer, units = (upto + U::kPer - 1) / U::kPer - unit;
    product<U>(grad_v_ + j * dv_, dv_, false, across(weights_.p, unit, j), rows_g_at_.from(unit), 0,
               dv_, n, units);
    product<U>(grad_k_ + j * d_, d_, false, across(weights_.ds, unit, j), rows_q_at_.from(unit), 0,
               d_, n, units);
  }

  // Rows r .. r + n - 1 of P and dS from their scores and products, over keys [from, upto).
  template <bool kPartial, bool kCapped>
  void weigh(int64_t r, int64_t n, int64_t from, int64_t upto) {
    constexpr int kRows = U::kPer;
    const vf scale = set1(a_.scale);
    alignas(64) float add[kRows][kKeys];
    for (int64_t i = r; i < r + n; i += kRows) {
      vf lse[kRows], delta[kRows];
      for (int e = 0; e < kRows; ++e) {
        const int64_t at = first_ + std::min(i + e, rows_ - 1);
        lse[e] = set1(lse_[at * a_.lse_stride[2]]);
        delta[e] = set1(delta_[at]);
        if (kPartial && a_.mask && i + e < rows_)
          this->read_mask(i + e, from_[i + e], upto_[i + e], add[e] + from_[i + e]);
      }
      for (int64_t c = from; c < upto; c += 2 * kLanes) {
        vf w[kRows][2], g[kRows][2];
#pragma GCC unroll 2
        for (int e = 0; e < kRows; ++e)
#pragma GCC unroll 2
          for (int m = 0; m < 2; ++m) {
            const int64_t at = (i - r + e) * kKeys + c + m * kLanes;
            const vf s = load(scores_ + at), product = load(products_ + at);
            vf x, slope = scale;
            if (kCapped) {
              const vf t = tanh(s * scale / set1(a_.softcap));
              x = set1(a_.softcap) * t;
              slope = scale * fma(-t, t, set1(1.f));
            }
            vi hide;
            if (kPartial) {
              const vi lane = iota() + set1i(int(c) + m * kLanes);
              const vi after = less_int(set1i(from_[i + e] - 1), lane);
              hide = (less_int(lane, set1i(end_[i + e])) & after) ^ set1i(-1);
            }
            if (kPartial && a_.mask) {
              const vf bias = load(add[e] + c + m * kLanes);
              hide = hide | equal(bias, set1(-__builtin_inff()));
              x = ((kCapped ? x : s * scale) + bias) - lse[e];
            } else {
              x = kCapped ? x - lse[e] : fma(s, scale, -lse[e]);
            }
            w[e][m] = Weights<U>::exp(x);
            g[e][m] = w[e][m] * (product - delta[e]) * slope;
            if (kPartial) {
              w[e][m] = select(hide, zero(), w[e][m]);
              g[e][m] = select(hide, zero(), g[e][m]);
            }
          }
        weights_.put(i, c, w, g);
      }
    }
  }

  // One row of c, for which the elements k of b that it does not see count as zero.
  template <class Sees>
  static void carefully(float* c, const Factor& a, const Panels& b, int64_t columns, int64_t units,
                        const Sees& sees) {
    alignas(64) float clean[128 * kLanes];
    for (int64_t n = 0; n < columns; n += kLanes) {
      for (int64_t k = 0; k < units; ++k) {
        const int32_t keep =
            U::kPer == 1 ? (sees(k) ? -1 : 0)
                         : (sees(2 * k) ? 0xffff : 0) | (sees(2 * k + 1) ? int32_t(0xffff0000) : 0);
        store(clean + k * kLanes, from_bits(bits(load(b.column(n) + k * b.step)) & set1i(keep)));
      }
      product_rows<U, 1, kLanes / kRegLanes>(c + n, 0, false, a, clean, kLanes, 1, units);
    }
  }

  // The products of visit() in which a hidden pair gives nothing, whatever it holds.
  HEXAD_APART void visit_carefully(bool keys, float* grad_q, int64_t grad_q_step,
                                   const int64_t* begin, const int64_t* end) {
    for (int64_t j = 0; keys && j < count_; ++j) {
      int64_t from, upto;
      find_rows(j / kStrip * kStrip, kStrip, &from, &upto);
      if (from >= upto) continue;
      const int64_t unit = from / U::kPer, units = (upto + U::kPer - 1) / U::kPer - unit;
      const auto sees = [&](int64_t k) { return this->visible(unit * U::kPer + k, j); };
      carefully(grad_v_ + j * dv_, across(weights_.p, unit, j), rows_g_at_.from(unit), dv_, units,
                sees);
      carefully(grad_k_ + j * d_, across(weights_.ds, unit, j), rows_q_at_.from(unit), d_, units,
                sees);
    }
    for (int64_t r = 0; grad_q && r < rows_; ++r) {
      const int64_t from = begin[r / kStrip], upto = end[r / kStrip];
      if (from < upto)
        carefully(grad_q + r * grad_q_step, weights_.rows(r, from), rows_k_at_.from(from / U::kPer),
                  d_, (upto - from) / U::kPer,
                  [&](int64_t k) { return this->visible(r, from + k); });
    }
  }

  const int64_t d_, dv_;  // head dimensions, padded
  float* room_;
  float *const turned_k_, *const turned_v_, *const rows_k_, *const grad_k_, *const grad_v_;
  float *const rows_q_, *const rows_g_, *const along_q_, *const along_g_;
  float *const scores_, *const products_;  // a strip of <q, k> and of <grad_out, v>
  const Weights<U> weights_;
  Panels turned_k_at_, turned_v_at_, rows_k_at_, rows_q_at_, rows_g_at_;
  Factor along_q_at_, along_g_at_;
};

}  // namespace
}  // namespace hexad
