// Affine and additive coupling: one pass over each batch row, log-determinant alongside.
#include "cpu/couple.h"

namespace hexad {
namespace {

// y, given as raw scales, from x.
template <int M, bool kInverse, bool kMasked, int N>
HEXAD_INLINE void moved(const vf (&x)[N], const vf (&shift)[N], vf (&y)[N], float clamp, vi active,
                        LogDet<M>& d) {
  if constexpr (M == kAdditive) {
    HEXAD_EACH y[i] = kInverse ? x[i] - shift[i] : x[i] + shift[i];
  } else {
    factor<M, kInverse, kMasked>(y, clamp, active, d);
    HEXAD_EACH y[i] = kInverse ? (x[i] - shift[i]) * y[i] : fma(x[i], y[i], shift[i]);
  }
  if (kMasked) HEXAD_EACH y[i] = select(active, y[i], x[i]);
}

template <int N, class T, int M, bool kInverse, bool kMasked>
HEXAD_INLINE void move(const T* x, const T* shift, const T* raw, T* y, float clamp, vi active,
                       bool past, LogDet<M>& d) {
  vf from[N], by[N], v[N];
  HEXAD_EACH {
    const int64_t at = i * kLanes;
    ask(x + at), ask(shift + at);
    if (M != kAdditive) ask(raw + at);
    from[i] = load(x + at), by[i] = load(shift + at);
    v[i] = M == kAdditive ? zero() : load(raw + at);
  }
  moved<M, kInverse, kMasked>(from, by, v, clamp, active, d);
  HEXAD_EACH put(y + i * kLanes, v[i], past);
}

// Passive elements, which are copied beside the arithmetic of active ones: it leaves memory idle.
template <class T>
struct Still {
  T* to = nullptr;
  const T* from = nullptr;
  int64_t n = 0;
  bool past = false;

  template <int64_t count>
  HEXAD_INLINE void some() {
    if (count * sizeof(T) % 64 || n < count || (past && !streams(to))) return;
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = 0; i < count; i += line) {
      ask(from + i);
      put(reinterpret_cast<float*>(to + i), load<vf>(from + i), past);
    }
    to += count, from += count, n -= count;
  }
  void rest() { copy(to, from, n, past); }
};

// A run of elements; for kMasked, lanes outside `active` pass through and count nothing.
template <class T, int M, bool kInverse, bool kMasked>
HEXAD_INLINE void run(const T* x, const T* shift, const T* raw, T* y, int64_t n, float clamp,
                      vi active, bool past, LogDet<M>& d, Still<T> still = {}) {
  past = past && streams(y);
  // tanh has the longest chains.
  constexpr int together = M == kTanh && kAtOnce > 1 ? 4 : kAtOnce;
  constexpr int64_t wide = together * kLanes;
  int64_t i = 0;
  for (; i + wide <= n; i += wide) {
    still.template some<wide>();
    move<together, T, M, kInverse, kMasked>(x + i, shift + i, raw + i, y + i, clamp, active, past,
                                            d);
  }
  still.rest();
  for (; i + kLanes <= n; i += kLanes)
    move<1, T, M, kInverse, kMasked>(x + i, shift + i, raw + i, y + i, clamp, active, past, d);
  if (i < n) {
    const int64_t rest = n - i;
    const vi here = less_int(iota(), set1i(int32_t(rest)));
    vf v[1] = {M == kAdditive ? zero() : load_part(raw + i, rest)};
    moved<M, kInverse, true>({load_part(x + i, rest)}, {load_part(shift + i, rest)}, v, clamp,
                             kMasked ? active & here : here, d);
    store_part(y + i, v[0], rest);
  }
}

template <class T, int M, bool kInverse>
double piece(const CouplingArgs& a, const Cut& cut, int64_t b, int64_t p, bool past) {
  const T* x = static_cast<const T*>(a.x) + b * a.x_stride;
  T* y = static_cast<T*>(a.y) + b * a.y_stride;
  const T* shift = static_cast<const T*>(a.shift) + b * a.shift_stride;
  const T* raw = M == kAdditive ? nullptr : static_cast<const T*>(a.log_scale) + b * a.scale_stride;
  LogDet<M> d;
  if (a.checkerboard) {
    const vi odd = less_int(set1i(0), iota() & set1i(1)), even = odd ^ set1i(-1);
    const int64_t end = std::min((p + 1) * cut.size, a.row / a.width);
    for (int64_t r = p * cut.size; r < end; ++r) {
      const vi active = (r % a.height % 2 == 0) != a.flip ? odd : even;
      const int64_t at = r * a.width;
      run<T, M, kInverse, true>(x + at, shift + at, M == kAdditive ? raw : raw + at, y + at,
                                a.width, a.clamp, active, past, d);
    }
  } else {
    const Range still = passive(a, cut, p);
    const int64_t from = p * cut.size, n = std::min(cut.size, a.active - from);
    const int64_t at = a.active_begin + from;
    run<T, M, kInverse, false>(x + at, shift + from, M == kAdditive ? raw : raw + from, y + at, n,
                               a.clamp, set1i(0), past, d,
                               {y + still.begin, x + still.begin, still.end - still.begin, past});
  }
  return d.sum_s();
}

template <class T, int M, bool kInverse>
void rows(const CouplingArgs& a) {
  const bool past = beyond_cache(a.batch * a.row * int64_t(sizeof(T)));
  for_pieces(
      a,
      [&](const Cut& cut, int64_t b, int64_t p) {
        const double sum_s = piece<T, M, kInverse>(a, cut, b, p, past);
        if (past) drain();
        return sum_s;
      },
      [&](int64_t b, double sum_s) { a.log_det[b] = float(kInverse ? -sum_s : sum_s); });
}

template <class T, int M>
void either_way(const CouplingArgs& a) {
  a.inverse ? rows<T, M, true>(a) : rows<T, M, false>(a);
}

template <class T>
void any_map(const CouplingArgs& a) {
  if (!a.log_scale) return either_way<T, kAdditive>(a);
  if (a.scale_map == kTanh) return either_way<T, kTanh>(a);
  if (a.scale_map == kSigmoid) return either_way<T, kSigmoid>(a);
  either_way<T, kExp>(a);
}

}  // namespace

namespace HEXAD_ISA {

void coupling(const CouplingArgs& a) {
  a.bf16 ? any_map<bf16>(a) : any_map<float>(a);
}

}  // namespace HEXAD_ISA
}  // namespace hexad
