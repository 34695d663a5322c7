// A token per row. Instead of a sort, a threshold on the logits is found: vectors narrow down where
// it lies, then the few tokens there go digit by digit, most significant first, on a key that
// orders as the logits do. Each row is one thread's, in one order.
#include "op/sample.h"

#include <algorithm>
#include <cfloat>

#include "cpu/parallel.h"
#include "cpu/philox.h"
#include "cpu/sample_weigh.h"

namespace hexad {
namespace {

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

// f(w, at, n) gives the weights of the chunk at `at` or where it put them, `w` being room for them.
// In one pass: their sum a chunk and, where there are marks, the masses above them.
template <class T, class F>
HEXAD_INLINE double sum_all(const T* l, int64_t n, double* sums, const float* mark, double* mass,
                            const F& f) {
  double found[kPieces][kMarks];
  const int pieces = in_pieces(n, [&](int p, int64_t begin, int64_t end) {
    std::fill_n(found[p], kMarks, 0.0);
    float room[kChunk];
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t here = std::min(kChunk, end - at);
      const float* w = f(room, at, here);
      sums[at / kChunk] = sum_chunk(w, here);
      if (mark) add_masses(l + at, w, here, mark, found[p]);
    }
  });
  for (int j = 0; mark && j < kMarks; ++j) {
    mass[j] = 0;
    for (int p = 0; p < pieces; ++p) mass[j] += found[p][j];
  }
  double total = 0;
  for (int64_t c = 0; c * kChunk < n; ++c) total += sums[c];
  return total;
}

// The first i whose running sum reaches u of the whole; chunk(at, n) gives weights.
template <class F>
HEXAD_INLINE int64_t draw(int64_t n, const double* sums, double total, double u, const F& chunk) {
  const double target = u * total;
  double before = 0;
  int64_t at = 0;
  for (; at + kChunk < n; at += kChunk) {
    const double after = before + sums[at / kChunk];
    if (after >= target) break;
    before = after;
  }
  const int64_t here = std::min(kChunk, n - at);
  const float* w = chunk(at, here);
  int64_t last = 0;
  for (int64_t i = 0; i < here; ++i) {
    before += w[i];
    if (w[i] > 0) last = i;
    if (before >= target) break;
  }
  return at + last;  // the last with a weight, where rounding leaves the running sum short
}

// Orders as the float does; -0 is 0.
uint32_t order_key(float l) {
  l += 0.f;
  uint32_t u;
  memcpy(&u, &l, sizeof u);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

// The key that order_key made of it.
float of_key(uint32_t key) {
  const uint32_t u = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float l;
  memcpy(&l, &u, sizeof l);
  return l;
}

// The smallest set, largest key first and then by index, whose mass reaches the target: all above
// `key`, whose mass is `above`, and of its equals as many as it takes.
struct Cut {
  uint32_t key;
  double above, target;
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
  double* sums;  // of each chunk's w; may lie in `spare`
  int64_t n;
  bool listed;

  int32_t token(int64_t i) const { return listed ? index[i] : int32_t(i); }

  // The weights of the listed.
  void weigh(const Weigh& weigh) {
    in_pieces(n, [&](int, int64_t begin, int64_t end) {
      weigh.chunk(l + begin, end - begin, w + begin);
    });
  }
  double sum(const float* mark, double* mass) {
    return sum_all(l, n, sums, mark, mass,
                   [&](float*, int64_t at, int64_t) -> const float* { return w + at; });
  }

  // The tokens whose logit is at least `least`; `given` are the logits, `weighed`: w holds theirs.
  template <class T>
  void at_least(float least, const T* given, bool weighed) {
    int64_t first[kPieces], kept[kPieces];
    const int pieces = in_pieces(n, [&](int p, int64_t begin, int64_t end) {
      first[p] = begin;
      kept[p] = at_least(least, given, weighed, begin, end);
    });
    n = kept[0];
    for (int p = 1; p < pieces; n += kept[p++]) {
      memmove(l + n, l + first[p], kept[p] * sizeof *l);
      memmove(index + n, index + first[p], kept[p] * sizeof *index);
      if (weighed) memmove(w + n, w + first[p], kept[p] * sizeof *w);
    }
    listed = true;
  }

  // Of [begin, end) only, which the kept move to the front of; how many they are.
  template <class T>
  int64_t at_least(float least, const T* given, bool weighed, int64_t begin, int64_t end) {
    int64_t to = begin, i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const vf logit = load(given + i);
      const vi stays = hexad::at_least(logit, set1(least));
      if (!any(stays)) continue;
      const vf weight = weighed ? load(w + i) : zero();
      const vf where = from_bits(listed ? load(index + i) : iota() + set1i(int32_t(i)));
      const int count = store_kept(l + to, logit, stays);
      if (weighed) store_kept(w + to, weight, stays);
      store_kept(reinterpret_cast<float*>(index) + to, where, stays);
      to += count;
    }
    for (; i < end; ++i) {
      const float logit = to_float(given[i]);
      if (logit < least) continue;
      const int32_t t = token(i);
      if (weighed) w[to] = w[i];
      l[to] = logit;
      index[to++] = t;
    }
    return to - begin;
  }

  // What the cut keeps of the listed.
  void keep(Cut cut, bool weighed) {
    const float least = of_key(cut.key);
    at_least(least, l, weighed);
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t end = std::min(i + kLanes, n);
      if (end - i == kLanes && !any(equal(load(l + i), set1(least)))) continue;
      for (int64_t j = i; j < end; ++j) {
        if (l[j] != least) continue;
        if (cut.above >= cut.target) {  // here and from here on equals are too many
          n = j + at_least(of_key(cut.key + 1), l, weighed, j, n);
          return;
        }
        cut.above += weighed ? w[j] : 1.f;
      }
    }
  }

  // Lists in `spare` the places with low <= l, and l < high unless that is NaN; how many they are.
  int64_t between(float low, float high) {
    int64_t to = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const vf x = load(l + i);
      const vi in = hexad::at_least(x, set1(low)) & (hexad::at_least(x, set1(high)) ^ set1i(-1));
      if (!any(in)) continue;
      to += store_kept(reinterpret_cast<float*>(spare) + to, from_bits(iota() + set1i(int32_t(i))),
                       in);
    }
    for (; i < n; ++i) {
      spare[to] = int32_t(i);
      to += l[i] >= low && !(l[i] >= high);
    }
    return to;
  }
};

// No logit below this is among a row's k largest: l holds some of the row's.
float kth_largest(const float* l, int64_t n, int64_t k) {
  Cut cut = find_cut(
      n, double(k), [&](int64_t i) { return order_key(l[i]); }, [](int64_t) { return 1.0; });
  return of_key(cut.key);
}

template <class T>
void keep_top_k(Row& row, const T* logits, int64_t k, const float* maxima) {
  const int64_t sets = (row.n + kChunk - 1) / kChunk * kLanes;
  const float least =
      row.n >= kChunk && k <= sets / 2 ? kth_largest(maxima, sets, k) : -__builtin_inff();
  row.at_least(least, logits, false);
  row.keep(find_cut(
               row.n, double(k), [&](int64_t i) { return order_key(row.l[i]); },
               [](int64_t) { return 1.0; }),
           false);
}

// `low` and `high` close in on the logit where the mass from above reaches the target; `above` is
// the mass from `high` on.
struct Bracket {
  float low, high;
  double above;
  bool bounded;  // by high

  void narrow(const float* mark, const double* mass, double target) {
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
void keep_top_p(Row& row, const T* logits, const Weigh& weigh, float p) {
  const float far = __builtin_inff(), max = weigh.max;
  static const float depth[kMarks] = {1.5f, 4.f, 7.f, 10.f};
  float mark[kMarks];
  double mass[kMarks];
  for (int j = 0; j < kMarks; ++j) mark[j] = max - depth[j] * weigh.temperature;
  const double total = row.listed ? row.sum(mark, mass)
                                  : sum_all(logits, row.n, row.sums, mark, mass, weigh.of(logits));
  const double target = std::max(p * total, DBL_MIN);
  Bracket bracket{-far, far, 0, false};
  bracket.narrow(mark, mass, target);
  if (row.listed) {
    row.at_least(bracket.low, row.l, true);
  } else {
    row.at_least(bracket.low, logits, false);
    row.weigh(weigh);
  }
  for (int round = 0; round < 3 && row.n > 256; ++round) {
    const float top = bracket.bounded ? bracket.high : max, width = top - bracket.low;
    if (!(width > 0 && width < far)) break;
    for (int j = 0; j < kMarks; ++j)
      mark[j] = bracket.low + width * (float(kMarks - 1 - j) / kMarks);
    row.sum(mark, mass);
    bracket.narrow(mark, mass, target);
  }
  const int64_t between =
      row.between(bracket.low, bracket.bounded ? bracket.high : __builtin_nanf(""));
  Cut cut = find_cut(
      between, target - bracket.above, [&](int64_t i) { return order_key(row.l[row.spare[i]]); },
      [&](int64_t i) { return double(row.w[row.spare[i]]); });
  // Where rounding left the masses short of the target, all from `low` on stays.
  cut.key = std::max(cut.key, order_key(bracket.low));
  row.keep(cut, true);
}

template <class T>
T* aligned(void* p) {
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(p) + alignof(T) - 1) / alignof(T) *
                              alignof(T));
}

template <class T>
int64_t token_of(const SampleArgs& a, int64_t b, int32_t* workspace) {
  const T* logits = static_cast<const T*>(a.logits) + b * a.logits_stride;
  float* const area = reinterpret_cast<float*>(workspace);
  const int64_t v = a.vocabulary;
  const float temperature = a.temperature[b], top_p = a.top_p[b], min_p = a.min_p[b];
  int32_t* const spare = workspace + 3 * v;
  double few[kSampleScratch / kChunk];
  double* const sums = v <= kSampleScratch ? few : aligned<double>(spare);
  Row row{area, area + v, workspace + 2 * v, spare, sums, v, false};
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
  Weigh weigh(peak.max, temperature);
  if (cut) {
    keep_top_k(row, logits, k, row.w);
    row.weigh(weigh);
  }
  if (top_p < 1) keep_top_p(row, logits, weigh, top_p);
  if (min_p > 0 && row.listed) row.at_least(min_p, row.w, true);
  weigh.floor = min_p;

  const uint64_t position = uint64_t(a.position[b]);
  uint32_t c[4][1] = {{~0u}, {~0u}, {uint32_t(position)}, {uint32_t(position >> 32)}};
  philox(c, uint64_t(a.seeds[b]));
  const double u = uniform52(c[0][0], c[1][0]);
  if (row.listed) {
    const auto there = [&](int64_t at, int64_t) -> const float* { return row.w + at; };
    return row.index[draw(row.n, sums, row.sum(nullptr, nullptr), u, there)];
  }
  const auto of = weigh.of(logits);
  float room[kChunk];
  return draw(v, sums, sum_all(logits, v, sums, nullptr, nullptr, of), u,
              [&](int64_t at, int64_t n) { return of(room, at, n); });
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
