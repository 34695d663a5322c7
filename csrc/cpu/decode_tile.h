// What decode does with a tile of 64 cached keys: find them, score them, weigh their values.
//
// The query heads of a group go together, so a cached key or value is read once for all of them,
// and the tile after this one is prefetched meanwhile. A score sums over the head dimension from 0
// up and an output over the keys from the first up, in the chains of cpu/panel.h.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/ahead.h"
#include "cpu/math.h"
#include "cpu/pairs.h"
#include "cpu/turn.h"

namespace hexad {
namespace {

constexpr int kTile = 64;                           // keys in a tile
constexpr int kTogether = kRegLanes == 16 ? 8 : 4;  // query heads that share registers
template <class C>
constexpr int kUnit = int(sizeof(float) / sizeof(C));  // elements of a cache in 32 bits

// Whether sums go by pairs of bfloat16.
template <class C>
constexpr bool kPaired = HEXAD_PAIRS && std::is_same<C, bf16>::value;

HEXAD_INLINE int64_t rounded_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}
HEXAD_INLINE int64_t padded(int64_t n) {
  return rounded_up(n, 2 * kLanes);
}

// One kind of tensor of a cache, keys or values or their scales, as one sequence and head sees it.
template <class C>
struct Lane {
  const C* p;
  int64_t page, slot;  // strides
};

template <class C>
struct Cache {
  Lane<C> k, v;
  Lane<float> k_scale, v_scale;  // of int8
  const int32_t* table;          // null: contiguous
  int64_t table_step, page;
};

// Asks for the first key and value of each page of keys first .. last - 1, long before they are
// needed: the addresses of pages far apart take time to translate.
template <class C>
void touch_pages(const Cache<C>& cache, int64_t first, int64_t last) {
  if (!cache.table || first >= last) return;
  for (int64_t i = first / cache.page; i <= (last - 1) / cache.page; ++i) {
    const int64_t page = cache.table[i * cache.table_step];
    __builtin_prefetch(cache.k.p + page * cache.k.page, 0, 2);
    __builtin_prefetch(cache.v.p + page * cache.v.page, 0, 2);
  }
}

template <class C>
struct Tile {
  int64_t base;    // the key that the tile counts from
  int begin, end;  // keys that the rows see
  const C *k[kTile], *v[kTile];
  int64_t k_step;     // elements between keys of a run
  unsigned straight;  // bit g: keys 16 g .. 16 g + 15 are there, at that step
  alignas(64) float k_scale[kTile], v_scale[kTile];

  void locate(const Cache<C>& cache, int64_t at, int64_t lo, int64_t hi) {
    base = at;
    begin = int(std::clamp<int64_t>(lo - at, 0, kTile));
    end = int(std::clamp<int64_t>(hi - at, 0, kTile));
    cut(cache);
    find(cache.k, k), find(cache.v, v);
    k_step = cache.k.slot;
    straight = 0;
    for (int r = 0; r < count_; ++r)
      for (int g = (runs_[r].at + kLanes - 1) / kLanes;
           (g + 1) * kLanes <= runs_[r].at + runs_[r].n; ++g)
        straight |= 1u << g;
    // The scales are copied when they are needed: waiting for memory here would stop the tile
    // before.
    if constexpr (std::is_same<C, int8_t>::value) touch(cache.k_scale), touch(cache.v_scale);
  }

  // What the tile before this one asks for.
  Ahead ahead(int64_t dims, int64_t value_dims) const {
    return {k + begin, v + begin, end - begin, dims, value_dims};
  }

  void take_scales(const Cache<C>& cache) {
    copy(cache.k_scale, k_scale), copy(cache.v_scale, v_scale);
  }

 private:
  // Keys that lie at a fixed step: keys at .. at + n - 1 of the tile from a slot of a page on.
  struct Run {
    int64_t page, slot;
    int at, n;
  };

  void cut(const Cache<C>& cache) {
    count_ = 1;
    runs_[0] = {0, base + begin, begin, end - begin};
    if (!cache.table) return;
    int64_t index = (base + begin) / cache.page, slot = (base + begin) % cache.page;
    count_ = 0;
    for (int j = begin; j < end; ++index, slot = 0) {
      const int n = int(std::min<int64_t>(cache.page - slot, end - j));
      runs_[count_++] = {cache.table[index * cache.table_step], slot, j, n};
      j += n;
    }
  }

  template <class E, class Each>
  HEXAD_INLINE void each_run(const Lane<E>& lane, const Each& each) const {
    for (int r = 0; r < count_; ++r)
      each(lane.p + runs_[r].page * lane.page + runs_[r].slot * lane.slot, runs_[r].at, runs_[r].n);
  }

  void find(const Lane<C>& lane, const C** out) const {
    each_run(lane, [&](const C* p, int at, int n) {
      for (int i = 0; i < n; ++i) out[at + i] = p + i * lane.slot;
      // Early, so that the addresses of pages far apart are translated side by side.
      __builtin_prefetch(p, 0, 2);
      __builtin_prefetch(out[at + n - 1], 0, 2);
    });
    // Keys that no row sees: any readable ones do, their scores are hidden.
    for (int j = 0; j < begin; ++j) out[j] = out[begin];
    for (int j = end; j < kTile; ++j) out[j] = out[begin];
  }

  void touch(const Lane<float>& lane) const {
    each_run(lane, [&](const float* p, int, int n) {
      for (int i = 0; i < n; i += 16) __builtin_prefetch(p + i * lane.slot);
      __builtin_prefetch(p + (n - 1) * lane.slot);
    });
  }

  void copy(const Lane<float>& lane, float* out) const {
    if (end - begin < kTile) std::fill(out, out + kTile, 0.f);
    each_run(lane, [&](const float* p, int at, int n) {
      if (lane.slot == 1)
        memcpy(out + at, p, n * sizeof(float));
      else
        for (int i = 0; i < n; ++i) out[at + i] = p[i * lane.slot];
    });
  }

  Run runs_[kTile];
  int count_;
};

typedef int32_t ireg __attribute__((vector_size(sizeof(reg))));

// The first n elements, n less than a register's; the rest is zero.
template <class C>
HEXAD_INLINE reg load_reg_part(const C* p, int64_t n) {
  if constexpr (std::is_same<reg, vf>::value && !std::is_same<C, int8_t>::value) {
    return load_part(p, n);
  } else {
    C buffer[kRegLanes] = {};
    memcpy(buffer, p, n * sizeof(C));
    return load_reg(buffer);
  }
}

// A register of units, each 32 bits of the cache; `n` elements are there.
template <class C>
HEXAD_INLINE reg load_units(const C* p, int64_t n) {
  constexpr int64_t all = kRegLanes * kUnit<C>;
  if (n >= all) return load<reg>(p);
  if constexpr (std::is_same<reg, vf>::value) {
    if (n % kUnit<C> == 0) return load_part(reinterpret_cast<const float*>(p), n / kUnit<C>);
  }
  C buffer[all] = {};
  memcpy(buffer, p, n * sizeof(C));
  return load<reg>(buffer);
}

// Element `e` of each unit.
template <int e>
HEXAD_INLINE reg element(reg unit, const float*) {
  return unit;
}
template <int e>
HEXAD_INLINE reg element(reg unit, const bf16*) {
  return (reg)(e ? (ireg)unit & int32_t(0xffff0000) : (ireg)unit << 16);
}

#if HEXAD_PAIRS
// Elements i of `a` and `b` side by side: pairs 0 .. 15, then 16 .. 31.
template <size_t... L>
HEXAD_INLINE void interleave(reg a, reg b, pairs* out, std::index_sequence<L...>) {
  typedef uint16_t words __attribute__((vector_size(sizeof(reg))));
  out[0] = (pairs)__builtin_shufflevector((words)a, (words)b, (L / 2 + L % 2 * 32)...);
  out[1] = (pairs)__builtin_shufflevector((words)a, (words)b, (L / 2 + L % 2 * 32 + 16)...);
}
HEXAD_INLINE void interleave(reg a, reg b, pairs* out) {
  interleave(a, b, out, std::make_index_sequence<32>{});
}
#endif

template <class C>
using Query = std::conditional_t<kPaired<C>, bf16, float>;

// s[r] += the products of a unit's elements e, e + 1, ... < n with those of the queries.
template <int R, class C, int e = 0>
HEXAD_INLINE void add_unit(reg unit, const Query<C>* q, int64_t q_step, int n, reg* s) {
#if HEXAD_PAIRS
  if constexpr (kPaired<C>) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) s[r] = dot(spread_pair(q + r * q_step), (pairs)unit, s[r]);
    return;
  }
#endif
  if constexpr (!kPaired<C> && e < kUnit<C>) {
    if (e >= n) return;
    const reg x = element<e>(unit, static_cast<const C*>(nullptr));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) s[r] = fma(set1_reg(q[r * q_step + e]), x, s[r]);
    add_unit<R, C, e + 1>(unit, q, q_step, n, s);
  }
}

// Steps of a chain, over the head dimension and over keys; pairs go in one.
constexpr int kChain = 32;

// p[r * kTile + lane] = <q_r, k_lane> for as many keys as a register has lanes. A square of units
// is turned in registers, so that a lane is a key and the chains run over the head dimension.
template <int R, class C>
void score(const Query<C>* q, int64_t q_step, int64_t dims, const C* const* k, Ahead& next,
           float* p) {
  constexpr int U = kUnit<C>;
  reg s[R];
  const auto fresh = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) s[r] = set1_reg(-0.f);
  };
  // Called where the dimensions before `done` are summed: a chain may end there.
  bool first = true;
  const auto keep = [&](int64_t done) __attribute__((always_inline)) {
    if (done < dims && (kPaired<C> || done % kChain)) return;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      store_reg(p + r * kTile, first ? s[r] : load_reg(p + r * kTile) + s[r]);
    first = false;
    fresh();
  };
  fresh();
  int64_t d = 0;
  for (; d + kRegLanes * U <= dims; d += kRegLanes * U) {
    reg square[kRegLanes];
    load_turned(reinterpret_cast<const void* const*>(k), d * int64_t(sizeof(C)), square);
#pragma GCC unroll 16
    for (int i = 0; i < kRegLanes; ++i) {
      add_unit<R, C>(square[i], q + d + i * U, q_step, U, s);
      if ((i + 1) * sizeof(reg) % Ahead::kStep == 0) next.next();
      if ((i + 1) * U % kChain == 0 || i + 1 == kRegLanes) keep(d + (i + 1) * U);
    }
  }
  if (d < dims) {
    reg square[kRegLanes];
    for (int i = 0; i < kRegLanes; ++i) {
      square[i] = load_units(k[i] + d, dims - d);
      next.ask(sizeof(reg));
    }
    transpose(square);
    for (int i = 0; d + i * U < dims; ++i) {
      const int64_t done = std::min<int64_t>(d + (i + 1) * U, dims);
      add_unit<R, C>(square[i], q + d + i * U, q_step, int(done - d - i * U), s);
      keep(done);
    }
  }
}

// out[r] = out[r] * factor[r] + sum over keys [begin, end) of p[r][key] * v[key], NV registers of
// columns wide; `part`: only so many columns of the last one are there.
template <int R, int NV, bool kPart, class C>
void weigh_strip(float* out, int64_t out_step, const float* factor, const float* p,
                 const C* const* v, Ahead& next, int64_t at, int64_t part, int begin, int end) {
  for (int j = begin, chain = begin; chain < end; chain = j) {
    reg sum[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) sum[r][n] = set1_reg(-0.f);
    for (const int upto = std::min(end, chain / kChain * kChain + kChain); j < upto; ++j) {
      reg x[NV];
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n)
        x[n] = kPart ? load_reg_part(v[j] + at, part) : load_reg(v[j] + at + n * kRegLanes);
      next.ask(NV * kRegLanes * sizeof(C));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const reg w = set1_reg(p[r * kTile + j]);
#pragma GCC unroll 8
        for (int n = 0; n < NV; ++n) sum[r][n] = fma(w, x[n], sum[r][n]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) {
        float* to = out + r * out_step + at + n * kRegLanes;
        const reg before = load_reg(to);
        store_reg(to, (chain == begin ? before * set1_reg(factor[r]) : before) + sum[r][n]);
      }
  }
}

template <int R, class C>
void weigh(float* out, int64_t out_step, const float* factor, const float* p, const C* const* v,
           Ahead& next, int64_t columns, int begin, int end) {
  constexpr int NV = std::max(1, std::min(8, kAccumulators / R));
  int64_t at = 0;
  for (; at + NV * kRegLanes <= columns; at += NV * kRegLanes)
    weigh_strip<R, NV, false>(out, out_step, factor, p, v, next, at, 0, begin, end);
  if constexpr (NV > 4)
    for (; at + 4 * kRegLanes <= columns; at += 4 * kRegLanes)
      weigh_strip<R, 4, false>(out, out_step, factor, p, v, next, at, 0, begin, end);
  if constexpr (NV > 2)
    for (; at + 2 * kRegLanes <= columns; at += 2 * kRegLanes)
      weigh_strip<R, 2, false>(out, out_step, factor, p, v, next, at, 0, begin, end);
  for (; at + kRegLanes <= columns; at += kRegLanes)
    weigh_strip<R, 1, false>(out, out_step, factor, p, v, next, at, 0, begin, end);
  if (at < columns)
    weigh_strip<R, 1, true>(out, out_step, factor, p, v, next, at, columns - at, begin, end);
}

#if HEXAD_PAIRS
// The same by pairs of keys counted from the tile's first, columns 32 at a time. A key that the
// rows do not see is half of a pair at most: its weight and its value are 0.
template <int R, int NV>
void weigh_strip(float* out, int64_t out_step, const float* factor, const bf16* p,
                 const bf16* const* v, Ahead& next, int64_t at, int64_t columns, int begin,
                 int end) {
  constexpr int kWide = 2 * kLanes;
  vf sum[R][2 * NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < 2 * NV; ++n)
      sum[r][n] = load(out + r * out_step + at + n * kLanes) * set1(factor[r]);
  const auto add = [&](int j, bool first, bool second) __attribute__((always_inline)) {
    pairs x[2 * NV];
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) {
      const int64_t here = at + n * kWide;
      const reg a = first ? load_units(v[j] + here, columns - here) : zero();
      const reg b = second ? load_units(v[j + 1] + here, columns - here) : zero();
      interleave(a, b, x + 2 * n);
      next.ask(128);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const pairs w = spread_pair(p + r * kTile + j);
#pragma GCC unroll 8
      for (int n = 0; n < 2 * NV; ++n) sum[r][n] = dot(w, x[n], sum[r][n]);
    }
  };
  int j = begin;
  if (j % 2) add(j - 1, false, true), ++j;
  for (; j + 1 < end; j += 2) add(j, true, true);
  if (j < end) add(j, true, false);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < 2 * NV; ++n) store(out + r * out_step + at + n * kLanes, sum[r][n]);
}

template <int R>
void weigh(float* out, int64_t out_step, const float* factor, const bf16* p, const bf16* const* v,
           Ahead& next, int64_t columns, int begin, int end) {
  constexpr int NV = R <= 6 ? 2 : 1;
  int64_t at = 0;
  for (; at + NV * 2 * kLanes <= columns; at += NV * 2 * kLanes)
    weigh_strip<R, NV>(out, out_step, factor, p, v, next, at, columns, begin, end);
  for (; at < columns; at += 2 * kLanes)
    weigh_strip<R, 1>(out, out_step, factor, p, v, next, at, columns, begin, end);
}
#endif

// body(std::integral_constant<int, n>) for n <= kTogether.
template <class Body>
HEXAD_INLINE void with_rows(int64_t n, const Body& body) {
  switch (n) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    default:
      break;
  }
  if constexpr (kTogether > 4) {
    switch (n) {
      case 5:
        return body(std::integral_constant<int, 5>{});
      case 6:
        return body(std::integral_constant<int, 6>{});
      case 7:
        return body(std::integral_constant<int, 7>{});
      default:
        return body(std::integral_constant<int, 8>{});
    }
  }
}

}  // namespace
}  // namespace hexad
