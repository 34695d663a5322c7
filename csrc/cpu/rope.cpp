#include "op/rope.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rotate.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

constexpr int64_t kRow = 1024;  // of a row on the stack, on its way past the cache

template <class T, class C>
void run(const RopeArgs& a, int64_t begin, int64_t end, bool past) {
  alignas(64) T turned[kRow];
  for (int64_t t = begin; t < end; ++t) {
    const int64_t s = t % a.rows, h = t / a.rows % a.heads, b = t / a.rows / a.heads;
    const int64_t position = s + (a.positions ? a.positions[b * a.positions_stride] : 0);
    T* const y = static_cast<T*>(a.y) + b * a.y_stride[0] + h * a.y_stride[1] + s * a.y_stride[2];
    rotate(static_cast<const T*>(a.x) + b * a.x_stride[0] + h * a.x_stride[1] + s * a.x_stride[2],
           past ? turned : y, static_cast<const C*>(a.cos) + position * a.cos_stride,
           static_cast<const C*>(a.sin) + position * a.sin_stride, a.head_dim, a.interleaved);
    if (past) copy(y, turned, a.head_dim, true);
  }
  if (past) drain();
}

}  // namespace

namespace HEXAD_ISA {

void rope(const RopeArgs& a) {
  const int64_t grain = std::max<int64_t>(1, 8192 / a.head_dim), rows = a.batch * a.heads * a.rows;
  const bool past = a.head_dim <= kRow && beyond_cache(rows * a.head_dim * (a.bf16 ? 2 : 4));
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    if (a.tables_bf16) return run<bf16, bf16>(a, begin, end, past);
    a.bf16 ? run<bf16, float>(a, begin, end, past) : run<float, float>(a, begin, end, past);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
