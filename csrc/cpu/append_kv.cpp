#include "op/append_kv.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rotate.h"

namespace hexad {
namespace {

constexpr int64_t kRow = 3840;  // the longest row that the door lets through to be quantised

// x as int8 with the scale max |x| / 127; a row with a NaN has the scale NaN, with an infinity inf.
void quantise(const float* x, int64_t n, int8_t* to, float* scale) {
  vf most = zero();
  vi numbers = set1i(-1);
  for (int64_t i = 0; i < n; i += kLanes) {
    const vf v = abs(load_part(x + i, std::min<int64_t>(n - i, kLanes)));
    most = max(most, v);
    numbers = numbers & equal(v, v);
  }
  float lane[kLanes];
  store(lane, select(numbers, most, set1(__builtin_nanf(""))));
  float top = 0;
  for (float m : lane) top = m > top || m != m ? m : top;
  *scale = top / 127.f;
  const vf step = set1(*scale > 0 ? *scale : 1.f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t here = std::min<int64_t>(n - i, kLanes);
    const vf v = load_part(x + i, here) / step;
    const vf near = round(max(set1(-127.f), min(set1(127.f), v)));
    store(lane, select(equal(v, v), near, zero()));
    for (int64_t j = 0; j < here; ++j) to[i + j] = int8_t(lane[j]);
  }
}

// Copies a row of k or v, rotated where cos is given.
template <class T, class R>
void put_row(const T* x, int64_t n, T* to, float*, const R* cos, const R* sin, bool interleaved) {
  if (cos)
    rotate(x, to, cos, sin, n, interleaved);
  else
    std::copy(x, x + n, to);
}

// The same into an int8 cache: rotated and measured in float32.
template <class T, class R>
void put_row(const T* x, int64_t n, int8_t* to, float* scale, const R* cos, const R* sin,
             bool interleaved) {
  float row[kRow];
  for (int64_t i = 0; i < n; ++i) row[i] = to_float(x[i]);
  if (cos) rotate(row, row, cos, sin, n, interleaved);
  quantise(row, n, to, scale);
}

// T: new rows, C: the cache, R: the tables.
template <class T, class C, class R>
void run(const AppendKvArgs& a, int64_t begin, int64_t end) {
  const R* const no_table = nullptr;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t s = t % a.rows, h = t / a.rows % a.kv_heads, b = t / a.rows / a.kv_heads;
    const int64_t position = a.lengths[b * a.lengths_stride] + s;
    int64_t page = b, slot = position;
    if (a.table) {
      page = a.table[b * a.table_stride[0] + position / a.page * a.table_stride[1]];
      slot = position % a.page;
    }
    const auto place = [&](const int64_t* step, int64_t i, int64_t j) {
      return i * step[0] + h * step[1] + j * step[2];
    };
    const T* k = static_cast<const T*>(a.k) + place(a.k_stride, b, s);
    const T* v = static_cast<const T*>(a.v) + place(a.v_stride, b, s);
    const R* cos = a.cos ? static_cast<const R*>(a.cos) + position * a.cos_stride : nullptr;
    const R* sin = a.cos ? static_cast<const R*>(a.sin) + position * a.sin_stride : nullptr;
    put_row(k, a.head_dim, static_cast<C*>(a.k_cache) + place(a.k_cache_stride, page, slot),
            a.k_scale + place(a.k_scale_stride, page, slot), cos, sin, a.interleaved);
    put_row(v, a.value_dim, static_cast<C*>(a.v_cache) + place(a.v_cache_stride, page, slot),
            a.v_scale + place(a.v_scale_stride, page, slot), no_table, no_table, false);
  }
}

template <class T, class R>
void run(const AppendKvArgs& a, int64_t begin, int64_t end) {
  a.k_scale ? run<T, int8_t, R>(a, begin, end) : run<T, T, R>(a, begin, end);
}

}  // namespace

namespace HEXAD_ISA {

void append_kv(const AppendKvArgs& a) {
  const int64_t grain = std::max<int64_t>(1, 8192 / (a.head_dim + a.value_dim));
  parallel_for(a.batch * a.kv_heads * a.rows, grain, [&](int64_t begin, int64_t end) {
    if (a.tables_bf16) return run<bf16, bf16>(a, begin, end);
    a.bf16 ? run<bf16, float>(a, begin, end) : run<float, float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
