#include "op/append_kv.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rotate.h"

namespace hexad {
namespace {

template <class T>
void run(const AppendKvArgs& a, int64_t begin, int64_t end) {
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
    T* k_to = static_cast<T*>(a.k_cache) + place(a.k_cache_stride, page, slot);
    T* v_to = static_cast<T*>(a.v_cache) + place(a.v_cache_stride, page, slot);
    if (a.cos)
      rotate(k, k_to, a.cos + position * a.cos_stride, a.sin + position * a.sin_stride, a.head_dim,
             a.interleaved);
    else
      std::copy(k, k + a.head_dim, k_to);
    std::copy(v, v + a.value_dim, v_to);
  }
}

}  // namespace

namespace HEXAD_ISA {

void append_kv(const AppendKvArgs& a) {
  const int64_t grain = std::max<int64_t>(1, 8192 / (a.head_dim + a.value_dim));
  parallel_for(a.batch * a.kv_heads * a.rows, grain, [&](int64_t begin, int64_t end) {
    a.bf16 ? run<bf16>(a, begin, end) : run<float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
