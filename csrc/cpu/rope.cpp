#include "op/rope.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rotate.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

constexpr int64_t kRow = 1024;  // of a row on the stack, on its way past the cache

// Rows s to s + count - 1 of one head.
template <class T, class C>
void run(const RopeArgs& a, int64_t b, int64_t h, int64_t s, int64_t count, bool past) {
  alignas(64) T turned[kRow];
  const int64_t size = a.head_dim * int64_t(sizeof(T));
  const int64_t ahead = std::max<int64_t>(1, kAsked / size) * a.x_stride[2];  // rows of some 4 KB
  const bool direct = !a.interleaved && size % 128 == 0;
  const T* x =
      static_cast<const T*>(a.x) + b * a.x_stride[0] + h * a.x_stride[1] + s * a.x_stride[2];
  T* y = static_cast<T*>(a.y) + b * a.y_stride[0] + h * a.y_stride[1] + s * a.y_stride[2];
  const int64_t position = s + (a.positions ? a.positions[b * a.positions_stride] : 0);
  const C* cos = static_cast<const C*>(a.cos) + position * a.cos_stride;
  const C* sin = static_cast<const C*>(a.sin) + position * a.sin_stride;
  for (; count > 0; --count) {
    for (int64_t at = 0; past && at < size; at += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(x + ahead) + at);
    if (!past) {
      rotate(x, y, cos, sin, a.head_dim, a.interleaved);
    } else if (direct && streams(y)) {
      rotate<true>(x, y, cos, sin, a.head_dim, false);
    } else {
      rotate(x, turned, cos, sin, a.head_dim, a.interleaved);
      copy(y, turned, a.head_dim, true);
    }
    x += a.x_stride[2], y += a.y_stride[2], cos += a.cos_stride, sin += a.sin_stride;
  }
}

template <class T, class C>
void run(const RopeArgs& a, int64_t begin, int64_t end, bool past) {
  while (begin < end) {
    const int64_t s = begin % a.rows, head = begin / a.rows;
    const int64_t count = std::min(end - begin, a.rows - s);
    run<T, C>(a, head / a.heads, head % a.heads, s, count, past);
    begin += count;
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
