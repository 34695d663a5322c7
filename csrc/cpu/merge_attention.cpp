// Sixteen rows' weights at a time, then their outputs row by row.
#include "op/merge_attention.h"

#include <algorithm>

#include "cpu/math.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

// wa a + wb b, where a side of weight 0 is never read.
template <class T>
void blend(const T* a, const T* b, T* out, int64_t n, float wa, float wb) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t here = std::min<int64_t>(kLanes, n - i);
    const vf x = wa == 0 ? zero() : load_first(a + i, here) * set1(wa);
    const vf y = wb == 0 ? zero() : load_first(b + i, here) * set1(wb);
    store_first(out + i, x + y, here);
  }
}

template <class T>
void run(const MergeAttentionArgs& args, int64_t begin, int64_t end) {
  const vf none = set1(-__builtin_inff());
  for (int64_t r = begin; r < end; r += kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, end - r);
    const vf a = load_first(args.lse_a + r, n), b = load_first(args.lse_b + r, n);
    const vf m = select(less(a, b), b, a);
    const vf base = select(equal(m, none), zero(), m);
    const vf ea = exp(a - base), eb = exp(b - base);
    const vf total = ea + eb;
    const vi nothing = equal(total, zero());
    const vf divisor = select(nothing, set1(1.f), total);
    float wa[kLanes], wb[kLanes];
    store(wa, ea / divisor);
    store(wb, eb / divisor);
    store_first(args.lse + r, select(nothing, none, base + log(divisor)), n);
    for (int64_t j = 0; j < n; ++j)
      blend(static_cast<const T*>(args.out_a) + (r + j) * args.a_stride,
            static_cast<const T*>(args.out_b) + (r + j) * args.b_stride,
            static_cast<T*>(args.out) + (r + j) * args.out_stride, args.value_dim, wa[j], wb[j]);
  }
}

}  // namespace

namespace HEXAD_ISA {

void merge_attention(const MergeAttentionArgs& a) {
  const int64_t rows = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, a.value_dim));
  const int64_t grain = (rows + kLanes - 1) / kLanes * kLanes;
  parallel_for(a.rows, grain, [&](int64_t begin, int64_t end) {
    a.bf16 ? run<bf16>(a, begin, end) : run<float>(a, begin, end);
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
