// Two partial attentions into one: a warp a row. A side that saw no key is not read.
#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(32 * kWarps) merge_attention_kernel(MergeAttentionArgs a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= a.rows) return;
  const float lse_a = a.lse_a[row], lse_b = a.lse_b[row];
  const float m = fmaxf(lse_a, lse_b), base = m == -INFINITY ? 0.f : m;
  const float x = expf(lse_a - base), y = expf(lse_b - base), total = x + y;
  const float divisor = total == 0 ? 1.f : total, share_a = x / divisor, share_b = y / divisor;
  const T* from_a = static_cast<const T*>(a.out_a) + row * a.a_stride;
  const T* from_b = static_cast<const T*>(a.out_b) + row * a.b_stride;
  T* out = static_cast<T*>(a.out) + row * a.out_stride;
  for (int64_t c = lane; c < a.value_dim; c += 32) {
    const float part_a = share_a == 0 ? 0.f : to_float(from_a[c]) * share_a;
    const float part_b = share_b == 0 ? 0.f : to_float(from_b[c]) * share_b;
    put(out + c, part_a + part_b);
  }
  if (lane == 0) a.lse[row] = total == 0 ? -INFINITY : base + logf(divisor);
}

}  // namespace

void merge_attention(const MergeAttentionArgs& a, hexad_stream stream) {
  if (a.rows == 0) return;
  launch("merge_attention", a.bf16 ? merge_attention_kernel<bf16> : merge_attention_kernel<float>,
         blocks("merge_attention", (a.rows + kWarps - 1) / kWarps), 32 * kWarps, 0, stream, a);
}

}  // namespace cuda
}  // namespace hexad
