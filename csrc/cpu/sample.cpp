// A token per row. Instead of a sort, a threshold on the logits is found: vectors narrow down where
// it lies, then the few tokens there go digit by digit, most significant first, on a key that
// orders as the logits do. Each row is one thread's, in one order.
#include "op/sample.h"

#include <algorithm>
#include <cfloat>

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/philox.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

constexpr int64_t kChunk = 1024;

// A long row goes in pieces that its length alone decides; f(piece, begin, end). A row that is
// drawn by itself has all threads for that, rows of a batch have one each.
constexpr int kPieces = 32;
template <class F>
HEXAD_INLINE int in_pieces(int64_t n, const F& f) {
  const int64_t least = 8 * kChunk,
                size = std::max(least, (n / kPieces + kChunk) / kChunk * kChunk);
  const int pieces = int((n + size - 1) / size);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) f(int(p), p * size, std::min(n, (p + 1) * size));
  });
  return pieces;
}

struct Peak {
  float max;
  int64_t chunk;  // the first one that has it
  bool nan;
};

// Also the maxima of each lane of each chunk: 16 disjoint sets of tokens a chunk.
template <class T>
Peak find_peak(const T* logits, int64_t begin, int64_t n, float* maxima) {
  const float none = -__builtin_inff();
  Peak peak{none, begin, false};
  vi numbers = set1i(-1);
  for (int64_t at = begin; at < n; at += kChunk) {
    const int64_t end = std::min(at + kChunk, n);
    vf a = set1(none), b = a, c = a, d = a;
    const auto take = [&](vf l, vf& top) __attribute__((always_inline)) {
      top = select(less(top, l), l, top);
      numbers = numbers & equal(l, l);
    };
    int64_t i = at;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      take(load(logits + i), a), take(load(logits + i + kLanes), b);
      take(load(logits + i + 2 * kLanes), c), take(load(logits + i + 3 * kLanes), d);
    }
    for (; i < end; i += kLanes)
      take(i + kLanes <= end ? load(logits + i) : load_first(logits + i, end - i, none), a);
    const vf top = larger(larger(a, b), larger(c, d));
    if (maxima) store(maxima + at / kChunk * kLanes, top);
    const float max = max_across(top);
    if (max > peak.max) peak = {max, at, false};
  }
  int32_t lane[kLanes];
  store(lane, numbers);
  for (int32_t number : lane) peak.nan |= !number;
  return peak;
}

template <class T>
Peak find_peak(const T* logits, int64_t n, float* maxima) {
  Peak found[kPieces];
  const int pieces = in_pieces(n, [&](int p, int64_t begin, int64_t end) {
    found[p] = find_peak(logits, begin, end, maxima);
  });
  Peak peak = found[0];
  for (int p = 1; p < pieces; ++p) {
    const bool nan = peak.nan || found[p].nan;
    if (found[p].max > peak.max) peak = found[p];
    peak.nan = nan;
  }
  return peak;
}

// w = exp((l - max) / temperature), 1 at the maximum also where that is infinite. In place is fine.
template <class T>
void weights(const T* logits, int64_t n, float max, float temperature, float* w) {
  in_pieces(n, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t rest = std::min<int64_t>(end - i, kLanes);
      const vf l = rest == kLanes ? load(logits + i) : load_part(logits + i, rest);
      const vf gap = (l - set1(max)) / set1(temperature);
      const vf e = exp(select(equal(l, set1(max)), zero(), gap));
      rest == kLanes ? store(w + i, e) : store_part(w + i, e, rest);
    }
  });
}

double sum_chunk(const float* w, int64_t n) {
  double lane[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] += w[i + j];
  for (int64_t i = whole; i < n; ++i) lane[i - whole] += w[i];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

double sum_all(const float* w, int64_t n) {
  double found[kPieces], total = 0;
  const int pieces = in_pieces(n, [&](int p, int64_t begin, int64_t end) {
    found[p] = 0;
    for (int64_t at = begin; at < end; at += kChunk)
      found[p] += sum_chunk(w + at, std::min(kChunk, end - at));
  });
  for (int p = 0; p < pieces; ++p) total += found[p];
  return total;
}

// The first i whose running sum reaches u of the whole.
int64_t draw(const float* w, int64_t n, double u) {
  const double target = u * sum_all(w, n);
  double before = 0;
  int64_t at = 0;
  for (; at + kChunk < n; at += kChunk) {
    const double after = before + sum_chunk(w + at, kChunk);
    if (after >= target) break;
    before = after;
  }
  const int64_t end = std::min(at + kChunk, n);
  int64_t last = at;
  for (int64_t i = at; i < end; ++i) {
    before += w[i];
    if (w[i] > 0) last = i;
    if (before >= target) break;
  }
  return last;  // the last with a weight, where rounding leaves the running sum short
}

// Orders as the float does; -0 is 0.
uint32_t order_key(float l) {
  l += 0.f;
  uint32_t u;
  memcpy(&u, &l, sizeof u);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

// The smallest set, largest key first and then by index, whose mass reaches the target: all above
// `key`, and of its equals as many as it takes.
struct Cut {
  uint32_t key;
  double above, target;
  bool keeps(uint32_t k, double mass) {
    if (k != key) return k > key;
    const bool in = above < target;
    above += mass;
    return in;
  }
};

template <class Key, class Mass>
Cut find_cut(int64_t n, double target, const Key& key, const Mass& mass) {
  const int digit_bits = n < 4096 ? 8 : 11;  // short rows: fewer bins to clear and walk
  double found[1 << 11];
  uint64_t prefix = 0;
  double above = 0;
  for (int shift = 32; shift > 0;) {
    const int bits = std::min(shift, digit_bits), known = shift;
    shift -= bits;
    const uint32_t mask = (1u << bits) - 1;
    std::fill_n(found, 1 << bits, 0.0);
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t k = key(i);
      if (k >> known == prefix) found[k >> shift & mask] += mass(i);
    }
    uint32_t digit = mask;
    for (; digit > 0 && above + found[digit] < target; --digit) above += found[digit];
    prefix = prefix << bits | digit;
  }
  return {uint32_t(prefix), above, target};
}

// The tokens still in play, by index: weights, logits and, once some have gone, indices.
struct Row {
  float *w, *l;
  int32_t *index, *spare;
  int64_t n;
  bool listed;

  int32_t token(int64_t i) const { return listed ? index[i] : int32_t(i); }

  template <class Keep>
  HEXAD_INLINE void filter(const Keep& keep) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const bool stays = keep(i);
      const int32_t t = token(i);
      w[kept] = w[i];
      index[kept] = t;
      kept += stays;
    }
    n = kept;
    listed = true;
  }

  // The tokens whose logit is at least `least`; `given` are the logits, `weighed`: w holds theirs.
  template <class T>
  void at_least(float least, const T* given, bool weighed) {
    int64_t kept = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const vf logit = load(given + i);
      const vi stays = less(logit, set1(least)) ^ set1i(-1);
      if (!any(stays)) continue;
      const vf weight = weighed ? load(w + i) : zero();
      const vf where = from_bits(listed ? load(index + i) : iota() + set1i(int32_t(i)));
      const int count = store_kept(l + kept, logit, stays);
      if (weighed) store_kept(w + kept, weight, stays);
      store_kept(reinterpret_cast<float*>(index) + kept, where, stays);
      kept += count;
    }
    for (; i < n; ++i) {
      const float logit = to_float(given[i]);
      if (logit < least) continue;
      const int32_t t = token(i);
      if (weighed) w[kept] = w[i];
      l[kept] = logit;
      index[kept++] = t;
    }
    n = kept;
    listed = true;
  }
};

// No logit below this is among a row's k largest: l holds some of the row's.
float kth_largest(const float* l, int64_t n, int64_t k) {
  Cut cut = find_cut(
      n, double(k), [&](int64_t i) { return order_key(l[i]); }, [](int64_t) { return 1.0; });
  const uint32_t u = cut.key ^ (cut.key >> 31 ? 0x80000000u : 0xffffffffu);
  float found;
  memcpy(&found, &u, sizeof found);
  return found;
}

template <class T>
void keep_top_k(Row& row, const T* logits, int64_t k, const float* maxima) {
  const int64_t sets = (row.n + kChunk - 1) / kChunk * kLanes;
  const float least =
      row.n >= kChunk && k <= sets / 2 ? kth_largest(maxima, sets, k) : -__builtin_inff();
  row.at_least(least, logits, false);
  auto key = [&](int64_t i) { return order_key(row.l[i]); };
  Cut cut = find_cut(row.n, double(k), key, [](int64_t) { return 1.0; });
  int64_t n = 0;
  for (int64_t i = 0; i < row.n; ++i)
    if (cut.keeps(key(i), 1.0)) {
      row.l[n] = row.l[i];
      row.index[n++] = row.index[i];
    }
  row.n = n;
}

constexpr int kMarks = 8;

// mass[j]: the weight of the tokens with a logit of at least mark[j].
template <class T>
void masses(const T* l, const float* w, int64_t n, const float* mark, double* mass) {
  double found[kPieces][kMarks];
  const int pieces = in_pieces(n, [&](int p, int64_t begin, int64_t end) {
    for (int j = 0; j < kMarks; ++j) found[p][j] = 0;
    for (int64_t at = begin; at < end; at += kChunk) {
      vf sums[kMarks];
#pragma GCC unroll 8
      for (int j = 0; j < kMarks; ++j) sums[j] = zero();
      for (int64_t i = at; i < std::min(at + kChunk, end); i += kLanes) {
        const int64_t rest = std::min<int64_t>(end - i, kLanes);
        const vf weight = rest == kLanes ? load(w + i) : load_part(w + i, rest);
        const vf logit = rest == kLanes ? load(l + i) : load_part(l + i, rest);
#pragma GCC unroll 8
        for (int j = 0; j < kMarks; ++j)
          sums[j] = sums[j] + select(less(logit, set1(mark[j])), zero(), weight);
      }
      for (int j = 0; j < kMarks; ++j) found[p][j] += sum(sums[j]);
    }
  });
  for (int j = 0; j < kMarks; ++j) {
    mass[j] = 0;
    for (int p = 0; p < pieces; ++p) mass[j] += found[p][j];
  }
}

// `low` and `high` close in on the logit where the mass from above reaches the target; `above` is
// the mass from `high` on.
struct Bracket {
  float low, high;
  double above;
  bool bounded;  // by high

  bool over(float l) const { return bounded && l >= high; }

  template <class T>
  void narrow(const T* l, const float* w, int64_t n, const float* mark, double target) {
    double mass[kMarks];
    masses(l, w, n, mark, mass);
    for (int j = 0; j < kMarks; ++j) {  // marks fall
      if (mass[j] >= target) {
        low = mark[j];
        return;
      }
      high = mark[j], bounded = true;
      above = mass[j];
    }
  }
};

template <class T>
void keep_top_p(Row& row, const T* logits, float max, float temperature, double p) {
  const double target = std::max(p * sum_all(row.w, row.n), DBL_MIN);
  const float far = __builtin_inff();
  Bracket bracket{-far, far, 0, false};
  static const float depth[kMarks] = {0.5f, 1.f, 2.f, 3.f, 4.f, 5.f, 7.f, 10.f};
  float mark[kMarks];
  for (int j = 0; j < kMarks; ++j) mark[j] = max - depth[j] * temperature;
  if (row.listed) {
    bracket.narrow(row.l, row.w, row.n, mark, target);
    row.at_least(bracket.low, row.l, true);
  } else {
    bracket.narrow(logits, row.w, row.n, mark, target);
    row.at_least(bracket.low, logits, true);
  }
  for (int round = 0; round < 3 && row.n > 256; ++round) {
    const float top = bracket.bounded ? bracket.high : max, width = top - bracket.low;
    if (!(width > 0 && width < far)) break;
    for (int j = 0; j < kMarks; ++j)
      mark[j] = bracket.low + width * (float(kMarks - 1 - j) / kMarks);
    bracket.narrow(row.l, row.w, row.n, mark, target);
  }
  int64_t between = 0;
  for (int64_t i = 0; i < row.n; ++i) {
    row.spare[between] = int32_t(i);
    between += row.l[i] >= bracket.low && !bracket.over(row.l[i]);
  }
  Cut cut = find_cut(
      between, target - bracket.above, [&](int64_t i) { return order_key(row.l[row.spare[i]]); },
      [&](int64_t i) { return double(row.w[row.spare[i]]); });
  row.filter([&](int64_t i) {
    const float l = row.l[i];
    return bracket.over(l) || (l >= bracket.low && cut.keeps(order_key(l), row.w[i]));
  });
}

template <class T>
int64_t token_of(const SampleArgs& a, int64_t b, int32_t* workspace) {
  const T* logits = static_cast<const T*>(a.logits) + b * a.logits_stride;
  float* const area = reinterpret_cast<float*>(workspace);
  const int64_t v = a.vocabulary;
  const float temperature = a.temperature[b], top_p = a.top_p[b], min_p = a.min_p[b];
  Row row{area, area + v, workspace + 2 * v, workspace + 3 * v, v, false};
  const int64_t k = a.top_k[b];
  const bool cut = temperature > 0 && k > 0 && k < v;
  // There is room: 16 maxima a chunk of 1024, in whole vectors.
  const Peak peak = find_peak(logits, v, cut && v >= kChunk ? row.w : nullptr);
  if (peak.nan) return kSampleNaN;
  if (peak.max == -__builtin_inff()) return kSampleNothing;
  if (temperature == 0) {
    int64_t i = peak.chunk;
    while (to_float(logits[i]) != peak.max) ++i;
    return i;
  }
  if (cut) {
    keep_top_k(row, logits, k, row.w);
    weights(row.l, row.n, peak.max, temperature, row.w);
  } else {
    weights(logits, v, peak.max, temperature, row.w);
  }
  if (top_p < 1) keep_top_p(row, logits, peak.max, temperature, top_p);
  if (min_p > 0) row.at_least(min_p, row.w, true);

  const uint64_t position = uint64_t(a.position[b]);
  uint32_t c[4][1] = {{~0u}, {~0u}, {uint32_t(position)}, {uint32_t(position >> 32)}};
  philox(c, uint64_t(a.seeds[b]));
  return row.token(draw(row.w, row.n, uniform52(c[0][0], c[1][0])));
}

}  // namespace

namespace HEXAD_ISA {

void sample(const SampleArgs& a) {
  const int64_t slots = a.workspace ? std::min(a.slots, a.batch) : a.batch;
  parallel_for(
      slots, a.workspace ? 1 : 1 + (1 << 12) / a.vocabulary, [&](int64_t begin, int64_t end) {
        int32_t own[4 * kSampleScratch];
        for (int64_t slot = begin; slot < end; ++slot) {
          int32_t* scratch = a.workspace ? a.workspace + slot * 4 * a.vocabulary : own;
          for (int64_t b = slot; b < a.batch; b += slots)
            a.out[b] = a.bf16 ? token_of<bf16>(a, b, scratch) : token_of<float>(a, b, scratch);
        }
      });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
