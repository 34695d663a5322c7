// A block of up to 48 query rows, a lane each, against the tiles of keys that any of them sees.
#pragma once

#include "cpu/attend_amx.h"
#include "cpu/parallel.h"
#include "cpu/sight.h"

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
  // Where a product over keys may be cut in two.
  static constexpr int kCut = std::max<int>(kUnits, Op::kChain);

 public:
  Block(const Job<T>& job, int64_t begin, int64_t end)
      : job_(job),
        sight_(job, begin, end),
        width_(sight_.width),
        // The maximum of scaled scores is the scaled maximum, unless the scale turns them round.
        adjusted_(job.mask.kind > MaskKind::boolean || job.softcap > 0 || job.slopes ||
                  (kPaired<T> && !(job.scale > 0))) {}

  void run() {
    std::fill(out_, out_ + (job_.value_dim + kLanes) * kRows, 0.f);
    std::fill(ones_, ones_ + kRows, 1.f);
    for (int r = 0; r < width_; ++r) {
      // A sink is a key without a value, ahead of the others.
      best_[r] = job_.sinks ? job_.sinks[sight_.head[r]] : -__builtin_inff();
      total_[r] = best_[r] == -__builtin_inff() ? 0 : 1;
    }
    if (sight_.first < sight_.last) {
      if (job_.head_dim <= kDims) take_queries(0, job_.head_dim);
      for (int64_t base = sight_.first / kTile * kTile; base < sight_.last; base += kTile) {
        if (!sight_.look(base)) continue;
        scores(base);
        for (int n = 0; n < width_; n += kLanes) {
          if (adjusted_) adjust(base, n);
          sight_.plain ? soften(n, {sight_.from, sight_.upto, sight_.from, sight_.upto})
                       : soften(n, sight_.spans[n / kLanes]);
        }
        values(base);
      }
    }
    finish();
  }

 private:
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
  static HEXAD_INLINE vf take_upto(const T* p, int64_t n) {
    return n >= kLanes * kUnits ? take(p) : take_part(p, n);
  }
  // Pairs are scaled after the product.
  static HEXAD_INLINE vf scaled(vf x, vf scale) { return kPaired<T> ? x : x * scale; }

  // Dimensions [at, at + dims) of the queries, turned: a lane is a row.
  void take_queries(int64_t at, int64_t dims) {
    const vf scale = set1(job_.scale);
    for (int n = 0; n < width_; n += kLanes) {
      const T* q[kLanes];
      for (int i = 0; i < kLanes; ++i)
        q[i] = job_.q + sight_.head[n + i] * job_.q_head + sight_.query[n + i] * job_.q_row + at;
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

  // p_[key][row] = <q_row, k_key>.
  void scores(int64_t base) {
    const int from = sight_.from, upto = sight_.upto;
    const T* k[kTile];
    // Keys that no row sees: any readable ones do, their scores are hidden.
    for (int j = 0; j < kTile; ++j)
      k[j] = job_.k + (base + std::clamp(j, from, upto - 1)) * job_.k_key;
    constexpr bool direct = kPaired<T> || std::is_same<T, float>::value;
    if (direct && job_.head_dim % kUnits == 0 && job_.head_dim <= kDims)
      return score(k, q_, job_.head_dim / kUnits, nullptr);
    const float* rows[kTile];
    for (int j = 0; j < kTile; ++j) rows[j] = kv_ + j * kChunk;
    for (int64_t at = 0; at < job_.head_dim; at += kDims) {
      const int64_t here = std::min(kDims, job_.head_dim - at);
      if (job_.head_dim > kDims) take_queries(at, here);
      for (int64_t d = 0; d < here; d += kChunk * kUnits) {
        const int64_t dims = std::min(kChunk * kUnits, here - d);
        for (int j = from / 8 * 8; j < (upto + 7) / 8 * 8; ++j)
          for (int64_t e = 0; e < dims; e += kLanes * kUnits)
            store(kv_ + j * kChunk + e / kUnits, take_upto(k[j] + at + d + e, dims - e));
        score(rows, q_ + d / kUnits * kRows, (dims + kUnits - 1) / kUnits,
              at + d > 0 ? ones_ : nullptr);
      }
    }
  }

  template <class Row>
  void score(const Row* const* k, const float* q, int64_t steps, const float* factor) {
    const Listed left{reinterpret_cast<const char* const*>(k)};
    const int from = sight_.from, upto = sight_.upto;
    if (sight_.plain && upto - from == kTile)
      return product<Op, false>(p_, factor, left, q, 0, steps, kTile, 0, width_);
    for (int j = from / 8 * 8; j < upto; j += 8) {
      int lane = 0, end = width_;
      if (!sight_.plain) {
        while (lane < end && !sees(lane, j)) lane += kLanes;
        while (lane < end && !sees(end - kLanes, j)) end -= kLanes;
      }
      product<Op, false>(p_ + j * kRows, factor, left.down(j), q, 0, steps, 8, lane, end);
    }
  }

  // Whether a row of the lanes from `lane` on sees one of the eight keys from j on.
  bool sees(int lane, int j) const {
    const Span& s = sight_.spans[lane / kLanes];
    return s.from < j + 8 && s.upto > j;
  }

  // Scale (of pairs), soft cap, ALiBi, floating mask: for sixteen rows.
  void adjust(int64_t base, int lane) {
    float* p = p_ + lane;
    vf scale = set1(job_.scale);
    const auto each = [&](const auto& f) {
      for (int j = sight_.from; j < sight_.upto; ++j) {
        const vf s = load(p + j * kRows);
        store(p + j * kRows, f(j, kPaired<T> ? s * scale : s));
      }
      scale = set1(1.f);
    };
    if (job_.softcap > 0) each([&](int, vf s) { return soft_cap(s, job_.softcap); });
    if (job_.slopes) {
      alignas(64) float slope[kLanes], at[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        slope[i] = -job_.slopes[sight_.head[lane + i]];
        at[i] = float(sight_.query[lane + i] + job_.offset - base);
      }
      const vf falls = load(slope), place = load(at);
      each([&](int j, vf s) { return s + falls * abs(place - set1(float(j))); });
    }
    if (job_.mask.kind > MaskKind::boolean) sight_.add_mask(base, lane, scale, p);
    if (kPaired<T> && !job_.softcap && !job_.slopes && job_.mask.kind <= MaskKind::boolean)
      each([&](int, vf s) { return s; });
  }

  // Scores of sixteen rows become weights exp(s - m).
  void soften(int lane, const Span& span) {
    for (int end = lane + kLanes; lane < end; lane += kRegLanes)
      span.whole() ? soften<false>(lane, span) : soften<true>(lane, span);
  }

  template <bool kHiding>
  void soften(int lane, const Span& span) {
    const float* p = p_ + lane;
    const reg none = set1_reg(-__builtin_inff());
    reg top[4] = {none, none, none, none};
    if (kHiding) {
      for (int j = span.from / 4 * 4; j < span.upto; j += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          top[i] = larger(top[i], sight_.shown(j + i, lane, load_reg(p + (j + i) * kRows), none));
    } else {
      for (int j = 0; j < kTile; j += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) top[i] = larger(top[i], load_reg(p + (j + i) * kRows));
    }
    reg now = larger(larger(top[0], top[1]), larger(top[2], top[3]));
    const reg scale = set1_reg(adjusted_ ? 1.f : job_.scale);
    if (kPaired<T>) now = now * scale;
    const reg m = rise(lane, now);
    const uint64_t seen = run_of_bits(span.from, span.upto);
    weigh(lane, [&](int j, reg* w) {
      if (kHiding && !(seen >> j & 0x0001000100010001)) {
        for (int g = 0; g < 4; ++g) w[g] = set1_reg(-0.f);
        return;
      }
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        w[g] = load_reg(p + (j + g * kLanes) * kRows);
        w[g] = (kPaired<T> ? w[g] * scale : w[g]) - m;
      }
      exp_falling<4>(w);
      // A weight of -0 tells a hidden key from one whose weight underflows.
      if (kHiding)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) w[g] = sight_.shown(j + g * kLanes, lane, w[g], set1_reg(-0.f));
    });
  }

  // The rows' maxima so far, given the tile's; alpha_ is what this does to earlier weights.
  HEXAD_INLINE reg rise(int lane, reg tops) {
    const reg old = load_reg(best_ + lane), now = larger(tops, old);
    store_reg(best_ + lane, now);
    reg fall = old - now;
    exp_falling<1>(&fall);
    store_reg(alpha_ + lane, select(equal(now, old), set1_reg(1.f), fall));
    return select(equal(now, set1_reg(-__builtin_inff())), set1_reg(0.f), now);
  }

  // p_ becomes the weights that four(j, w) gives for keys j, j + 16, j + 32, j + 48, and the rows'
  // totals grow by them, in the order of sum() over lanes of keys.
  template <class Four>
  HEXAD_INLINE void weigh(int lane, const Four& four) {
    reg t[kLanes];
    for (int j = 0; j < kLanes; j += kUnits) {
      reg w[kUnits][4];
#pragma GCC unroll 2
      for (int u = 0; u < kUnits; ++u) four(j + u, w[u]);
#if HEXAD_PAIRS
      if constexpr (kPaired<T>)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g)
          store_reg(pairs_ + (g * kLanes + j) / 2u * kRows + lane,
                    pair_up(w[0][g], w[kUnits - 1][g]));
#endif
      if constexpr (!kPaired<T>)
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) store_reg(p_ + (g * kLanes + j) * kRows + lane, w[0][g]);
#pragma GCC unroll 2
      for (int u = 0; u < kUnits; ++u) t[j + u] = (w[u][0] + w[u][1]) + (w[u][2] + w[u][3]);
    }
    for (int n = kLanes / 2; n > 0; n /= 2)
      for (int j = 0; j < n; ++j) t[j] = t[j] + t[j + n];
    store_reg(total_ + lane, load_reg(total_ + lane) * load_reg(alpha_ + lane) + t[0]);
  }

  // out_[d][row] = out_[d][row] * alpha + sum over visible keys of weight * value.
  void values(int64_t base) {
    const T* v = job_.v + base * job_.v_key;
    if constexpr (std::is_same<T, float>::value)
      return weigh_values(out_, Strided{reinterpret_cast<const char*>(v), 4 * job_.v_key},
                          job_.value_dim);
    for (int64_t at = 0; at < job_.value_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, job_.value_dim - at);
      gather(v + at, dims);
      weigh_values(out_ + at * kRows, Strided{reinterpret_cast<const char*>(kv_), 4 * kChunk},
                   dims);
    }
  }

  // Values of the tile as the product reads them.
  void gather(const T* v, int64_t dims) {
    const int from = sight_.from, upto = sight_.upto;
#if HEXAD_PAIRS
    if constexpr (kPaired<T>) {
      for (int j = from / 2 * 2; j < upto; j += 2)
        for (int64_t d = 0; d < dims; d += 2 * kLanes) {
          const T* even = v + j * job_.v_key + d;
          const int n = int(std::min<int64_t>(2 * kLanes, dims - d));
          interleave(even, even + job_.v_key, j < from ? 0 : n, j + 1 < upto ? n : 0,
                     kv_ + j / 2 * kChunk + d);
        }
      return;
    }
#endif
    for (int j = from; j < upto; ++j)
      for (int64_t d = 0; d < dims; d += kLanes)
        store(kv_ + j * kChunk + d, take_upto(v + j * job_.v_key + d, dims - d));
  }

  // Whether all values of the tile are finite.
  bool finite(Strided v, int64_t dims) const {
    vi most = set1i(0);
    const auto note = [&](vi x) { most = larger(most, x & set1i(0x7fffffff)); };
    for (int j = sight_.from / kUnits; j * kUnits < sight_.upto; ++j)
      for (int64_t d = 0; d < dims; d += kLanes) {
        const float* p = reinterpret_cast<const float*>(v.at(int(d), j));
        const vi x = bits(dims - d < kLanes ? load_part(p, dims - d) : load(p));
        note(x);
        if (kPaired<T>) note(x << 16);
      }
    return all_set(less_int(most, set1i(0x7f800000)));
  }

  // The keys that all rows see go together, the rest by sixteen rows. Pairs that are not wholly
  // inside, or chains, count as the rest. A hidden key's weight is 0, so only a value that is not
  // finite needs to be kept from the sum.
  void weigh_values(float* out, Strided v, int64_t dims) {
    const bool safe = sight_.plain || finite(v, dims);
    const float* p = kPaired<T> ? pairs_ : p_;
    const auto add = [&](bool hiding, const float* factor, int from, int upto, int lane, int end) {
      const int64_t first = from / kUnits, last = (upto + kUnits - 1) / kUnits;
      if (hiding && !safe)
        product<Op, true>(out, factor, v, p, first, last, dims, lane, end);
      else
        product<Op, false>(out, factor, v, p, first, last, dims, lane, end);
    };
    const int from = sight_.from, upto = sight_.upto;
    if (sight_.plain) return add(false, alpha_, from, upto, 0, width_);
    int inner = from, outer = upto;
    bool ragged = false;
    for (int n = 0; n < width_; n += kLanes) {
      const Span& s = sight_.spans[n / kLanes];
      inner = std::max(inner, s.inner_from), outer = std::min(outer, s.inner_upto);
      ragged = ragged || s.inner_from >= s.inner_upto;
    }
    if (ragged && job_.mask.kind != MaskKind::none) return add(true, alpha_, from, upto, 0, width_);
    inner = (inner + kCut - 1) / kCut * kCut, outer = outer / kCut * kCut;
    if (inner >= outer) inner = outer = upto;
    if (inner > from)
      for (int n = 0; n < width_; n += kLanes) ends(add, 0, inner, n, alpha_);
    if (inner == outer) return;
    add(false, inner <= from ? alpha_ : ones_, inner, outer, 0, width_);
    for (int n = 0; n < width_; n += kLanes) ends(add, outer, kTile, n, ones_);
  }

  // The part of a tile within [begin, end), for sixteen rows of which some may not see all of it.
  template <class Add>
  void ends(const Add& add, int begin, int end, int lane, const float* factor) {
    const Span& s = sight_.spans[lane / kLanes];
    const int from = std::max(s.from, begin), upto = std::min(s.upto, end), stop = lane + kLanes;
    if (from >= upto) {
      // Sums from earlier tiles fall all the same.
      if (begin == 0) add(false, factor, 0, 0, lane, stop);
      return;
    }
    int inner = std::max(from, (s.inner_from + kCut - 1) / kCut * kCut);
    int outer = std::min(upto, s.inner_upto / kCut * kCut);
    if (inner >= outer) inner = outer = upto;
    if (from < inner) add(true, factor, from, inner, lane, stop), factor = ones_;
    if (inner < outer) add(false, factor, inner, outer, lane, stop), factor = ones_;
    if (outer < upto) add(true, factor, outer, upto, lane, stop);
  }

  void finish() {
    for (int n = 0; n < width_; n += kLanes) {
      const int count = std::min(kLanes, sight_.rows - n);
      const vf sums = load(total_ + n);
      const vi nothing = equal(sums, zero());
      const vf total = select(nothing, set1(1.f), sums);
      alignas(64) float lse[kLanes];
      store(lse, select(nothing, set1(-__builtin_inff()), load(best_ + n) + log(total)));
      T* out[kLanes];
      for (int i = 0; i < count; ++i) {
        const int64_t query = sight_.query[n + i], head = sight_.head[n + i];
        out[i] = job_.out + head * job_.out_head + query * job_.out_row;
        if (job_.lse) job_.lse[head * job_.lse_head + query * job_.lse_row] = lse[i];
      }
      for (int64_t d = 0; d < job_.value_dim; d += kLanes) {
        vf square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)  // a zero's sign may stem from hidden keys
          square[i] = load(out_ + (d + i) * kRows + n) / total + zero();
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

  const Job<T>& job_;
  Sight<T> sight_;
  const int width_;
  const bool adjusted_;
  alignas(64) float best_[kRows], total_[kRows], alpha_[kRows], ones_[kRows];
  alignas(64) float q_[(kDims + kLanes) * kRows];                // queries, turned
  alignas(64) float out_[(kDims + kLanes) * kRows];              // sums, not yet divided, turned
  alignas(64) float p_[kTile * kRows];                           // scores, then weights
  alignas(64) float pairs_[kPaired<T> ? kTile / 2 * kRows : 1];  // or weights by pairs of keys
  alignas(64) float kv_[kTile * kChunk];  // a tile of keys or values, where it is converted
};

template <class T>
constexpr bool kTiled = HEXAD_TILES && std::is_same<T, bf16>::value;

// Rows of a task, of `heads` key heads with `rows` each: blocks as large as their scratch, unless
// that leaves threads without work.
template <class T>
int64_t block_rows([[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t heads,
                   [[maybe_unused]] int64_t head_dim, [[maybe_unused]] int64_t value_dim) {
#if HEXAD_TILES
  if (kTiled<T>) {
    int64_t most = amx_rows(head_dim, value_dim);
    const int64_t want = 4 * parallel_threads();
    while (most > 2 * kStrip && (rows + most - 1) / most * heads < want)
      most = most / 2 / kStrip * kStrip;
    return most;
  }
#endif
  return kRows;
}

// Rows [begin, end) of a job; at most block_rows of them.
template <class T>
void attend(const Job<T>& job, int64_t begin, int64_t end) {
  Job<T> part = job;
  for (int64_t at = 0; at < std::max<int64_t>(job.value_dim, 1); at += kDims) {
    part.v = job.v + at, part.out = job.out + at;
    part.value_dim = std::min(kDims, job.value_dim - at);
#if HEXAD_TILES
    if constexpr (kTiled<T>) {
      TileBlock(part, begin, end).run();
      continue;
    }
#endif
    Block<T>(part, begin, end).run();
  }
}

}  // namespace
}  // namespace hexad
