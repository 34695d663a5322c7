// A sampler's update in one pass: every input is read once, however many outputs there are.
#include "op/step.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

template <bool kPast>
struct Whole {
  static constexpr bool kAsks = kPast;  // in cache it gains nothing
  template <class T>
  HEXAD_INLINE vf get(const T* p) const {
    return load(p);
  }
  HEXAD_INLINE void put(float* p, vf v) const { kPast ? stream(p, v) : store(p, v); }
};

struct First {
  static constexpr bool kAsks = false;
  int64_t n;
  template <class T>
  HEXAD_INLINE vf get(const T* p) const {
    return load_part(p, n);
  }
  HEXAD_INLINE void put(float* p, vf v) const { store_part(p, v, n); }
};

// sum += c * value, left out for c = 0 so that an input that does not count may hold anything.
template <int N, class Value>
HEXAD_INLINE void add(vf (&sum)[N], float c, const Value& value) {
  if (c == 0) return;
  for (int i = 0; i < N; ++i) sum[i] = fma(set1(c), value(i), sum[i]);
}

// N vectors at a time: the branches on the coefficients cost once.
template <int N, class T, class Access>
HEXAD_INLINE void update(const StepArgs& a, int64_t at, Access access) {
  const float clip = a.row[2], guidance = a.row[3];
  const T* const output = static_cast<const T*>(a.model_output) + at;
  for (int i = 0; Access::kAsks && i < N; ++i) {
    ask(a.x + at + i * kLanes), ask(output + i * kLanes);
    if (a.uncond) ask(static_cast<const T*>(a.uncond) + at + i * kLanes);
  }
  vf x[N], m[N], p[N];
  for (int i = 0; i < N; ++i) {
    x[i] = access.get(a.x + at + i * kLanes);
    m[i] = access.get(output + i * kLanes);
    p[i] = zero();
  }
  if (a.uncond) {
    const T* const uncond = static_cast<const T*>(a.uncond) + at;
    for (int i = 0; i < N; ++i) {
      const vf u = access.get(uncond + i * kLanes);
      m[i] = fma(set1(guidance), m[i] - u, u);
    }
  }
  add(p, a.row[0], [&](int i) { return x[i]; });
  add(p, a.row[1], [&](int i) { return m[i]; });
  for (int i = 0; i < N; ++i) p[i] = max(set1(-clip), min(set1(clip), p[i]));

  for (int k = 0; k < a.outputs; ++k) {
    const float* c = a.row + 8 * (1 + k);
    vf sum[N];
    for (int i = 0; i < N; ++i) sum[i] = zero();
    add(sum, c[0], [&](int i) { return x[i]; });
    add(sum, c[1], [&](int i) { return m[i]; });
    add(sum, c[2], [&](int i) { return p[i]; });
    for (int j = 0; j < 3; ++j)
      add(sum, c[3 + j], [&](int i) { return access.get(a.history[j] + at + i * kLanes); });
    add(sum, c[6], [&](int i) { return access.get(a.last + at + i * kLanes); });
    add(sum, c[7], [&](int i) { return access.get(a.noise + at + i * kLanes); });
    for (int i = 0; i < N; ++i) access.put(a.out[k] + at + i * kLanes, sum[i]);
  }
}

template <class T, bool kPast>
void run(const StepArgs& a, int64_t begin, int64_t end) {
  constexpr int kAtOnce = 4;
  int64_t i = begin;
  for (; i + kAtOnce * kLanes <= end; i += kAtOnce * kLanes)
    update<kAtOnce, T>(a, i, Whole<kPast>{});
  for (; i < end; i += kLanes) update<1, T>(a, i, First{std::min<int64_t>(end - i, kLanes)});
  if (kPast) drain();
}

template <class T>
void all(const StepArgs& a) {
  bool past = beyond_cache(a.size * a.outputs * int64_t(sizeof(float)));
  for (int k = 0; k < a.outputs; ++k) past = past && streams(a.out[k]);
  parallel_for(a.size, 1 << 14, [&](int64_t begin, int64_t end) {
    past ? run<T, true>(a, begin, end) : run<T, false>(a, begin, end);
  });
}

}  // namespace

namespace HEXAD_ISA {

void step(const StepArgs& a) {
  a.bf16 ? all<bf16>(a) : all<float>(a);
}

}  // namespace HEXAD_ISA
}  // namespace hexad
