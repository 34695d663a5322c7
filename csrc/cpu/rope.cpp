#include "op/rope.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rotate.h"

namespace hexad {
namespace {

template <class T>
void run(const RopeArgs& a, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t s = t % a.rows, h = t / a.rows % a.heads, b = t / a.rows / a.heads;
    const int64_t position = s + (a.positions ? a.positions[b * a.positions_stride] : 0);
    rotate(static_cast<const T*>(a.x) + b * a.x_stride[0] + h * a.x_stride[1] + s * a.x_stride[2],
           static_cast<T*>(a.y) + b * a.y_stride[0] + h * a.y_stride[1] + s * a.y_stride[2],
           a.cos + position * a.cos_stride, a.sin + position * a.sin_stride, a.head_dim,
           a.interleaved);
  }
}

}  // namespace

namespace HEXAD_ISA {

void rope(const RopeArgs& a) {
  const int64_t grain = std::max<int64_t>(1, 8192 / a.head_dim);
  parallel_for(a.batch * a.heads * a.rows, grain, [&](int64_t begin, int64_t end) {
    a.bf16 ? run<bf16>(a, begin, end) : run<float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
