// A block of up to 48 query rows, a lane each, against the tiles of keys that any of them sees.
#pragma once

#include "cpu/attend.h"

namespace hexad {
namespace {

template <class T>
class Block {
#if HEXAD_PAIRS
  using Op = std::conditional_t<kPaired<T>, MultiplyPairs, Multiply>;
#else
  using Op = Multiply;
#endif
  static constexpr int kUnits = kUnit<T>;

  // Keys of the tile that some of sixteen rows see, and that all of them see.
  struct Edge {
    int from, upto, inner_from, inner_upto;
  };

 public:
  Block(const Job<T>& job, int64_t begin, int64_t end)
      : job_(job),
        begin_(begin),
        rows_(int(end - begin)),
        width_((rows_ + kLanes - 1) / kLanes * kLanes),
        masked_(job.mask.kind != MaskKind::none),
        adjusted_(masked_ || job.softcap > 0 || (kPaired<T> && !(job.scale > 0))) {}

  void run() {
    find_ranges();
    std::fill(out_, out_ + (job_.value_dim + kLanes) * kRows, 0.f);
    for (int r = 0; r < width_; ++r) best_[r] = -__builtin_inff(), total_[r] = 0;
    if (first_ < last_) {
      if (job_.head_dim <= kDims) take_queries(0, job_.head_dim);
      for (int64_t base = first_ / kTile * kTile; base < last_; base += kTile) tile(base);
    }
    finish();
  }

 private:
  // Keys that rows see: [lo, hi) a row; [first, last) any; [inner_first, inner_last) all.
  void find_ranges() {
    int64_t i = begin_ / job_.group, g = begin_ % job_.group;
    for (int r = 0; r < width_; ++r) {
      query_[r] = i, head_[r] = g;
      if (r + 1 < rows_ && ++g == job_.group) g = 0, ++i;
    }
    first_ = INT64_MAX, last_ = 0, inner_first_ = 0, inner_last_ = INT64_MAX;
    for (int r = 0; r < width_; ++r) {
      const int64_t at = query_[r] + job_.offset;
      lo_[r] = job_.left < 0 ? 0 : std::max<int64_t>(0, at - job_.left);
      hi_[r] = job_.right < 0 ? job_.count : std::min(job_.count, at + job_.right + 1);
      if (lo_[r] < hi_[r]) first_ = std::min(first_, lo_[r]), last_ = std::max(last_, hi_[r]);
      inner_first_ = std::max(inner_first_, lo_[r]);
      inner_last_ = std::min(inner_last_, hi_[r]);
    }
  }

  // Dimensions [at, at + dims) of the queries, turned: a lane is a row.
  void take_queries(int64_t at, int64_t dims) {
    const vf scale = set1(job_.scale);
    for (int n = 0; n < width_; n += kLanes) {
      const T* q[kLanes];
      for (int i = 0; i < kLanes; ++i)
        q[i] = job_.q + head_[n + i] * job_.q_head + query_[n + i] * job_.q_row + at;
      for (int64_t d = 0; d < dims; d += kLanes * kUnits) {
        vf square[kLanes];
        if (dims - d >= kLanes * kUnits) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) square[i] = scaled(take(q[i] + d), scale);
        } else {
          for (int i = 0; i < kLanes; ++i) square[i] = scaled(take_part(q[i] + d, dims - d), scale);
        }
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(q_ + (d / kUnits + i) * kRows + n, square[i]);
      }
    }
  }

  // Numbers as the products read them, a step of the sum a lane; of the last only n are there.
  static HEXAD_INLINE vf take(const T* p) {
    if constexpr (kPaired<T>)
      return load<vf>(p);
    else
      return load(p);
  }
  static vf take_part(const T* p, int64_t n) {
    T buffer[kLanes * kUnits] = {};
    memcpy(buffer, p, n * sizeof(T));
    return take(buffer);
  }
  // Pairs are scaled after the product.
  static HEXAD_INLINE vf scaled(vf x, vf scale) { return kPaired<T> ? x : x * scale; }
  static HEXAD_INLINE vf take_upto(const T* p, int64_t n) {
    return n >= kLanes * kUnits ? take(p) : take_part(p, n);
  }

  void tile(int64_t base) {
    from_ = int(std::max<int64_t>(first_ - base, 0));
    upto_ = int(std::min<int64_t>(last_ - base, kTile));
    together_ = !masked_ && base + from_ >= inner_first_ && base + upto_ <= inner_last_;
    if (!together_ && !find_edges(base)) return;
    scores(base);
    for (int n = 0; n < width_; n += kLanes) {
      if (!adjusted_ && whole(n))
        soften_whole(n);
      else
        soften(n);
    }
    values(base);
  }

  bool whole(int lane) const {
    if (together_) return upto_ - from_ == kTile;
    const Edge& e = edges_[lane / kLanes];
    return !masked_ && e.inner_from == 0 && e.inner_upto == kTile;
  }

  // What each row sees of the tile; false if none sees any.
  bool find_edges(int64_t base) {
    bool any = false;
    for (int n = 0; n < width_; n += kLanes) {
      Edge& e = edges_[n / kLanes];
      e = {kTile, 0, 0, kTile};
      for (int r = n; r < n + kLanes; ++r) {
        row_from_[r] = int(std::clamp<int64_t>(lo_[r] - base, 0, kTile));
        row_upto_[r] = int(std::clamp<int64_t>(hi_[r] - base, 0, kTile));
        e.inner_from = std::max(e.inner_from, row_from_[r]);
        e.inner_upto = std::min(e.inner_upto, row_upto_[r]);
        if (row_from_[r] >= row_upto_[r]) continue;
        e.from = std::min(e.from, row_from_[r]), e.upto = std::max(e.upto, row_upto_[r]);
      }
      any = any || e.from < e.upto;
    }
    return any && (!masked_ || read_mask(base));
  }

  // p_[key][row] = <q_row, k_key>.
  void scores(int64_t base) {
    const T* k[kTile];
    for (int j = 0; j < kTile; ++j)
      k[j] = job_.k + (base + std::clamp(j, from_, upto_ - 1)) * job_.k_key;
    constexpr bool direct = kPaired<T> || std::is_same<T, float>::value;
    if (direct && job_.head_dim % kUnits == 0 && job_.head_dim <= kDims)
      return score(k, q_, job_.head_dim / kUnits, nullptr);
    std::fill(ones_, ones_ + kRows, 1.f);
    for (int64_t at = 0; at < job_.head_dim; at += kDims) {
      const int64_t here = std::min(kDims, job_.head_dim - at);
      if (job_.head_dim > kDims) take_queries(at, here);
      for (int64_t d = 0; d < here; d += kChunk * kUnits) {
        const int64_t dims = std::min(kChunk * kUnits, here - d);
        const float* rows[kTile];
        for (int j = 0; j < kTile; ++j) {
          rows[j] = kv_ + j * kChunk;
          if (j < from_ / 8 * 8 || j >= (upto_ + 7) / 8 * 8) continue;
          for (int64_t e = 0; e < dims; e += kLanes * kUnits)
            store(kv_ + j * kChunk + e / kUnits, take_upto(k[j] + at + d + e, dims - e));
        }
        score(rows, q_ + d / kUnits * kRows, (dims + kUnits - 1) / kUnits,
              at + d > 0 ? ones_ : nullptr);
      }
    }
  }

  template <class Row>
  void score(const Row* const* k, const float* q, int64_t steps, const float* factor) {
    const Listed left{reinterpret_cast<const char* const*>(k)};
    if (together_ && upto_ - from_ == kTile)
      return product<Op, false>(p_, factor, left, q, 0, steps, kTile, 0, width_);
    for (int j = from_ / 8 * 8; j < upto_; j += 8) {
      int lane = 0, upto = width_;
      if (!together_) {
        while (lane < upto && !sees(lane, j)) lane += kLanes;
        while (lane < upto && !sees(upto - kLanes, j)) upto -= kLanes;
      }
      product<Op, false>(p_ + j * kRows, factor, left.down(j), q, 0, steps, 8, lane, upto);
    }
  }

  // Whether a row of the lanes from `lane` on sees one of the eight keys from j on.
  bool sees(int lane, int j) const {
    const Edge& e = edges_[lane / kLanes];
    return e.from < j + 8 && e.upto > j;
  }

  // Scores of a whole tile become weights exp(s - m), for sixteen rows.
  void soften_whole(int lane) {
    float* p = p_ + lane;
    vf top[4];
    for (int i = 0; i < 4; ++i) top[i] = load(p + i * kRows);
    for (int j = 4; j < kTile; j += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) top[i] = larger(top[i], load(p + (j + i) * kRows));
    vf now = larger(larger(top[0], top[1]), larger(top[2], top[3]));
    if (kPaired<T>) now = now * set1(job_.scale);
    const vf m = rise(lane, now), scale = set1(job_.scale);
    weigh(lane, [&](int j, vf* w) {
      for (int g = 0; g < 4; ++g) {
        w[g] = load(p + (j + g * kLanes) * kRows);
        w[g] = (kPaired<T> ? w[g] * scale : w[g]) - m;
      }
      exp_falling<4>(w);
    });
  }

  // The same where rows see parts of it, or scores are adjusted first.
  void soften(int lane) {
    float* p = p_ + lane;
    const Edge e = together_ ? Edge{from_, upto_, from_, upto_} : edges_[lane / kLanes];
    const vf hidden = set1(-__builtin_inff());
    const vi from = load(row_from_ + lane), upto = load(row_upto_ + lane);
    const bool partly = !together_;
    const auto hides = [&](int j) {
      const vi key = set1i(j);
      vi hide = less_int(key, from) | (less_int(key, upto) ^ set1i(-1));
      if (masked_) hide = hide | equal(load(bias_ + j * kRows + lane), hidden);
      return hide;
    };
    vf now = hidden;
    for (int j = e.from; j < e.upto; ++j) {
      vf s = load(p + j * kRows);
      if (kPaired<T>) s = s * set1(job_.scale);
      if (job_.softcap > 0) s = set1(job_.softcap) * tanh(s / set1(job_.softcap));
      if (masked_) s = s + load(bias_ + j * kRows + lane);
      if (partly) s = select(hides(j), hidden, s);
      store(p + j * kRows, s);
      now = larger(now, s);
    }
    const vf m = rise(lane, now);
    weigh(lane, [&](int first, vf* w) {
      for (int g = 0; g < 4; ++g) {
        const int j = first + g * kLanes;
        w[g] = set1(-0.f);
        if (j < e.from || j >= e.upto) continue;
        w[g] = exp_falling(load(p + j * kRows) - m);
        if (partly) w[g] = select(hides(j), set1(-0.f), w[g]);
      }
    });
  }

  // The rows' maxima so far, given the tile's; alpha_ is what this does to earlier weights.
  HEXAD_INLINE vf rise(int lane, vf tops) {
    const vf old = load(best_ + lane), now = larger(tops, old);
    store(best_ + lane, now);
    store(alpha_ + lane, select(equal(now, old), set1(1.f), exp_falling(old - now)));
    return select(equal(now, set1(-__builtin_inff())), zero(), now);
  }

  // p_ becomes the weights that four(j, w) gives for keys j, j + 16, j + 32, j + 48, and the rows'
  // totals grow by them, in the order of sum() over lanes of keys.
  template <class Four>
  HEXAD_INLINE void weigh(int lane, const Four& four) {
    vf t[kLanes];
    constexpr int step = kUnits;
    for (int j = 0; j < kLanes; j += step) {
      vf w[step][4];
#pragma GCC unroll 2
      for (int u = 0; u < step; ++u) four(j + u, w[u]);
#if HEXAD_PAIRS
      if constexpr (kPaired<T>)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g)
          store(pairs_ + (g * kLanes + j) / 2u * kRows + lane, pair_up(w[0][g], w[step - 1][g]));
#endif
      if constexpr (!kPaired<T>)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) store(p_ + (g * kLanes + j) * kRows + lane, w[0][g]);
#pragma GCC unroll 2
      for (int u = 0; u < step; ++u) t[j + u] = (w[u][0] + w[u][1]) + (w[u][2] + w[u][3]);
    }
    for (int n = kLanes / 2; n > 0; n /= 2)
      for (int j = 0; j < n; ++j) t[j] = t[j] + t[j + n];
    store(total_ + lane, load(total_ + lane) * load(alpha_ + lane) + t[0]);
  }

  // out_[d][row] = out_[d][row] * alpha + sum over visible keys of weight * value.
  void values(int64_t base) {
    const T* v = job_.v + base * job_.v_key;
    if constexpr (std::is_same<T, float>::value)
      return weigh_values(out_, Strided{reinterpret_cast<const char*>(v), 4 * job_.v_key},
                          job_.value_dim);
    for (int64_t at = 0; at < job_.value_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, job_.value_dim - at);
#if HEXAD_PAIRS
      if constexpr (kPaired<T>) {
        for (int j = from_ / 2 * 2; j < upto_; j += 2)
          for (int64_t d = 0; d < dims; d += 2 * kLanes) {
            const T* even = v + j * job_.v_key + at + d;
            const int n = int(std::min<int64_t>(2 * kLanes, dims - d));
            interleave(even, even + job_.v_key, j < from_ ? 0 : n, j + 1 < upto_ ? n : 0,
                       kv_ + j / 2 * kChunk + d);
          }
      }
#endif
      if constexpr (!kPaired<T>)
        for (int j = from_; j < upto_; ++j)
          for (int64_t d = 0; d < dims; d += kLanes)
            store(kv_ + j * kChunk + d, take_upto(v + j * job_.v_key + at + d, dims - d));
      weigh_values(out_ + at * kRows, Strided{reinterpret_cast<const char*>(kv_), 4 * kChunk},
                   dims);
    }
  }

  void weigh_values(float* out, Strided v, int64_t dims) {
    const float* p = kPaired<T> ? pairs_ : p_;
    const auto span = [&](auto hiding, const float* factor, int from, int upto, int lane,
                          int lanes) {
      product<Op, decltype(hiding)::value>(out, factor, v, p, from / kUnits,
                                           (upto + kUnits - 1) / kUnits, dims, lane, lanes);
    };
    if (together_) return span(std::false_type{}, alpha_, from_, upto_, 0, width_);
    if (masked_) return span(std::true_type{}, alpha_, from_, upto_, 0, width_);
    // The keys that all rows see go together, the rest by sixteen rows. Pairs that are not wholly
    // inside count as the edge.
    int inner = from_, outer = upto_;
    for (int n = 0; n < width_; n += kLanes) {
      inner = std::max(inner, edges_[n / kLanes].inner_from);
      outer = std::min(outer, edges_[n / kLanes].inner_upto);
    }
    inner = (inner + kUnits - 1) / kUnits * kUnits, outer = outer / kUnits * kUnits;
    if (inner >= outer) inner = outer = upto_;
    std::fill(ones_, ones_ + kRows, 1.f);
    for (int n = 0; n < width_; n += kLanes) edge(span, edges_[n / kLanes], 0, inner, n, alpha_);
    if (inner == outer) return;
    const bool fresh = inner <= from_;
    span(std::false_type{}, fresh ? alpha_ : ones_, inner, outer, 0, width_);
    for (int n = 0; n < width_; n += kLanes) edge(span, edges_[n / kLanes], outer, kTile, n, ones_);
  }

  // The part of a tile within [begin, end), for sixteen rows of which some may not see all of it.
  template <class Span>
  void edge(const Span& span, const Edge& e, int begin, int end, int lane, const float* factor) {
    const int from = std::max(e.from, begin), upto = std::min(e.upto, end);
    if (from >= upto) return;
    int inner = std::max(from, (e.inner_from + kUnits - 1) / kUnits * kUnits);
    int outer = std::min(upto, e.inner_upto / kUnits * kUnits);
    if (inner >= outer) inner = outer = upto;
    if (from < inner)
      span(std::true_type{}, factor, from, inner, lane, lane + kLanes), factor = ones_;
    if (inner < outer)
      span(std::false_type{}, factor, inner, outer, lane, lane + kLanes), factor = ones_;
    if (outer < upto) span(std::true_type{}, factor, outer, upto, lane, lane + kLanes);
  }

  // bias_[key][row] of the tile, -inf where the mask hides; false if it hides everything.
  bool read_mask(int64_t base) {
    const Mask& m = job_.mask;
    vi seen = set1i(0);
    const vf hidden = set1(-__builtin_inff());
    for (int n = 0; n < width_; n += kLanes) {
      for (int j = from_ / kLanes * kLanes; j < upto_; j += kLanes) {
        vf square[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          alignas(64) float row[kLanes];
          for (int l = 0; l < kLanes; ++l) {
            const int64_t key = std::clamp(j + l, from_, upto_ - 1);
            row[l] = mask_at(head_[n + i] * m.head + query_[n + i] * m.row + (base + key) * m.key);
          }
          square[i] = load(row);
        }
        transpose(square);
        for (int i = 0; i < kLanes; ++i) {
          store(bias_ + (j + i) * kRows + n, square[i]);
          seen = seen | (equal(square[i], hidden) ^ set1i(-1));
        }
      }
    }
    int32_t lanes[kLanes], any = 0;
    store(lanes, seen);
    for (int i = 0; i < kLanes; ++i) any |= lanes[i];
    return any != 0;
  }

  HEXAD_INLINE float mask_at(int64_t e) const {
    const Mask& m = job_.mask;
    if (m.kind == MaskKind::boolean)
      return static_cast<const uint8_t*>(m.data)[e] ? 0.f : -__builtin_inff();
    if (m.kind == MaskKind::f32) return static_cast<const float*>(m.data)[e];
    return to_float(static_cast<const bf16*>(m.data)[e]);
  }

  void finish() {
    for (int n = 0; n < width_; n += kLanes) {
      const int count = std::min(kLanes, rows_ - n);
      const vf sums = load(total_ + n);
      const vi nothing = equal(sums, zero());
      const vf total = select(nothing, set1(1.f), sums);
      alignas(64) float lse[kLanes];
      store(lse, select(nothing, set1(-__builtin_inff()), load(best_ + n) + log(total)));
      T* out[kLanes];
      for (int i = 0; i < count; ++i) {
        const int64_t query = query_[n + i], head = head_[n + i];
        out[i] = job_.out + head * job_.out_head + query * job_.out_row;
        if (job_.lse) job_.lse[head * job_.lse_head + query * job_.lse_row] = lse[i];
      }
      for (int64_t d = 0; d < job_.value_dim; d += kLanes) {
        vf square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(out_ + (d + i) * kRows + n) / total;
        transpose(square);
        if (count == kLanes && job_.value_dim - d >= kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) store(out[i] + d, square[i]);
        } else {
          const int64_t dims = std::min<int64_t>(kLanes, job_.value_dim - d);
          for (int i = 0; i < count; ++i) store_first(out[i] + d, square[i], dims);
        }
      }
    }
  }

  int64_t query_[kRows], head_[kRows];  // a row's place
  const Job<T>& job_;
  const int64_t begin_;
  const int rows_, width_;  // rows, and the lanes that hold them
  const bool masked_, adjusted_;
  int64_t first_, last_, inner_first_, inner_last_;
  int64_t lo_[kRows], hi_[kRows];
  int from_, upto_;  // keys of the tile that any row sees
  bool together_;    // all rows see them all
  Edge edges_[kRows / kLanes];
  alignas(64) int32_t row_from_[kRows], row_upto_[kRows];
  alignas(64) float best_[kRows], total_[kRows], alpha_[kRows], ones_[kRows];
  alignas(64) float q_[(kDims + kLanes) * kRows];    // queries, turned
  alignas(64) float out_[(kDims + kLanes) * kRows];  // sums, not yet divided, turned
  alignas(64) float p_[kTile * kRows];               // scores, then weights
  alignas(64) float pairs_[kPaired<T> ? kTile / 2 * kRows : 1];
  alignas(64) float bias_[kTile * kRows];
  alignas(64) float kv_[std::is_same<T, float>::value ? 1 : kTile * kChunk];
};

// Rows [begin, end) of a job; at most kRows of them.
template <class T>
void attend(const Job<T>& job, int64_t begin, int64_t end) {
  Job<T> part = job;
  for (int64_t at = 0; at < std::max<int64_t>(job.value_dim, 1); at += kDims) {
    part.v = job.v + at, part.out = job.out + at;
    part.value_dim = std::min(kDims, job.value_dim - at);
    Block<T>(part, begin, end).run();
  }
}

}  // namespace
}  // namespace hexad
