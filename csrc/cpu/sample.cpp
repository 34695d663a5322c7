// A token per row. Instead of a sort, a threshold on the logits is found digit by digit, most
// significant first, on a key that orders as the logits do; each row is one thread's, in one order.
#include "op/sample.h"

#include <algorithm>
#include <cfloat>

#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/philox.h"

namespace hexad {
namespace {

constexpr int64_t kChunk = 1024;

struct Peak {
  float max;
  int64_t chunk;  // the first one that has it
  bool nan;
};

template <class T>
Peak find_peak(const T* logits, int64_t n) {
  Peak peak{-__builtin_inff(), 0, false};
  vi numbers = set1i(-1);
  for (int64_t at = 0; at < n; at += kChunk) {
    const int64_t end = std::min(at + kChunk, n);
    vf top = set1(peak.max);
    for (int64_t i = at; i < end; i += kLanes) {
      const vf l =
          i + kLanes <= end ? load(logits + i) : load_first(logits + i, end - i, -__builtin_inff());
      top = select(less(top, l), l, top);
      numbers = numbers & equal(l, l);
    }
    const float max = max_lane(top);
    if (max > peak.max) peak = {max, at, false};
  }
  int32_t lane[kLanes];
  store(lane, numbers);
  for (int32_t number : lane) peak.nan |= !number;
  return peak;
}

// w = exp((l - max) / temperature), 1 at the maximum also where that is infinite. In place is fine.
template <class T>
void weights(const T* logits, int64_t n, float max, float temperature, float* w) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = std::min<int64_t>(n - i, kLanes);
    const vf l = rest == kLanes ? load(logits + i) : load_first(logits + i, rest);
    const vf gap = (l - set1(max)) / set1(temperature);
    const vf e = exp(select(equal(l, set1(max)), zero(), gap));
    rest == kLanes ? store(w + i, e) : store_first(w + i, e, rest);
  }
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
  double total = 0;
  for (int64_t at = 0; at < n; at += kChunk) total += sum_chunk(w + at, std::min(kChunk, n - at));
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

// The tokens still in play: their weights, and their indices once some have gone.
struct Row {
  float* w;
  int32_t* index;
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
};

template <class T>
void keep_top_p(Row& row, const T* logits, double p) {
  const double total = sum_all(row.w, row.n);
  // Together, weights below this are half of what may go: the cut is above them.
  const float low = float(0.5 * (1 - p) * total / double(row.n));
  row.filter([&](int64_t i) { return row.w[i] >= low; });
  auto key = [&](int64_t i) { return order_key(to_float(logits[row.index[i]])); };
  Cut cut = find_cut(row.n, std::max(p * total, DBL_MIN), key,
                     [&](int64_t i) { return double(row.w[i]); });
  row.filter([&](int64_t i) { return cut.keeps(key(i), row.w[i]); });
}

template <class T>
int64_t token_of(const SampleArgs& a, int64_t b, int32_t* workspace) {
  const T* logits = static_cast<const T*>(a.logits) + b * a.logits_stride;
  const Peak peak = find_peak(logits, a.vocabulary);
  if (peak.nan) return kSampleNaN;
  if (peak.max == -__builtin_inff()) return kSampleNothing;
  const float temperature = a.temperature[b], top_p = a.top_p[b], min_p = a.min_p[b];
  if (temperature == 0) {
    int64_t i = peak.chunk;
    while (to_float(logits[i]) != peak.max) ++i;
    return i;
  }
  Row row{reinterpret_cast<float*>(workspace), workspace + a.vocabulary, a.vocabulary, false};
  const int64_t k = a.top_k[b];
  if (k > 0 && k < a.vocabulary) {
    auto key = [&](int64_t i) { return order_key(to_float(logits[i])); };
    Cut cut = find_cut(a.vocabulary, double(k), key, [](int64_t) { return 1.0; });
    int64_t n = 0;
    for (int64_t i = 0; i < a.vocabulary; ++i)
      if (cut.keeps(key(i), 1.0)) {
        row.w[n] = to_float(logits[i]);
        row.index[n++] = int32_t(i);
      }
    row.n = n;
    row.listed = true;
    weights(row.w, n, peak.max, temperature, row.w);
  } else {
    weights(logits, a.vocabulary, peak.max, temperature, row.w);
  }
  if (top_p < 1) keep_top_p(row, logits, top_p);
  if (min_p > 0) row.filter([&](int64_t i) { return row.w[i] >= min_p; });

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
        int32_t own[2 * kSampleScratch];
        for (int64_t slot = begin; slot < end; ++slot) {
          int32_t* scratch = a.workspace ? a.workspace + slot * 2 * a.vocabulary : own;
          for (int64_t b = slot; b < a.batch; b += slots)
            a.out[b] = a.bf16 ? token_of<bf16>(a, b, scratch) : token_of<float>(a, b, scratch);
        }
      });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
