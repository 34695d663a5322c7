// Which kernels serve attention_backward, and the first of them: delta of each row.
#include "cuda/attend_backward.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kWidest = 256;

// delta = <grad_out, out> - grad_lse, a warp a row.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) attention_backward_kernel_delta(BackwardTask task) {
  const AttentionBackwardArgs& a = task.a;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= a.batch * a.heads * a.rows) return;
  const int64_t b = row / a.rows / a.heads, head = row / a.rows % a.heads, i = row % a.rows;
  const T* grad_out = row_of<T>(a.grad_out, a.grad_out_stride, b, head, i);
  const T* out = row_of<T>(a.out, a.out_stride, b, head, i);
  float sum = 0.f;
  for (int64_t c = threadIdx.x % 32; c < a.value_dim; c += 32)
    sum = fmaf(to_float(grad_out[c]), to_float(out[c]), sum);
  sum = warp_sum(sum);
  if (a.grad_lse)
    sum -= a.grad_lse[b * a.grad_lse_stride[0] + head * a.grad_lse_stride[1] +
                      i * a.grad_lse_stride[2]];
  if (threadIdx.x % 32 == 0) a.workspace[row] = sum;
}

bool aligned(const void* base, const int64_t (&stride)[3]) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride[0] % 8 == 0 && stride[1] % 8 == 0 &&
         stride[2] % 8 == 0;
}

}  // namespace

void attention_backward(const AttentionBackwardArgs& args, hexad_stream stream) {
  constexpr const char* kOp = "attention_backward";
  BackwardTask task{args, false, false};
  AttentionBackwardArgs& a = task.a;
  if (a.head_dim > kWidest || a.value_dim > kWidest)
    fail(HEXAD_UNSUPPORTED, "%s: its CUDA kernels are for head dimensions to 256", kOp);
  if (a.rows > kMostPositions || a.keys > kMostPositions)
    fail(HEXAD_UNSUPPORTED, "%s: over 2^29 rows or keys", kOp);
  if (a.left >= 2 * kMostPositions) a.left = -1;
  if (a.right >= 2 * kMostPositions) a.right = -1;
  task.vector = aligned(a.q, a.q_stride) && aligned(a.k, a.k_stride) && aligned(a.v, a.v_stride) &&
                aligned(a.grad_out, a.grad_out_stride);
  task.vector_grads = aligned(a.grad_q, a.grad_q_stride) && aligned(a.grad_k, a.grad_k_stride) &&
                      aligned(a.grad_v, a.grad_v_stride);
  const unsigned count = blocks(kOp, (a.batch * a.heads * a.rows + kWarps - 1) / kWarps);
  if (count)
    launch(kOp,
           a.bf16  ? attention_backward_kernel_delta<bf16>
           : a.f16 ? attention_backward_kernel_delta<f16>
                   : attention_backward_kernel_delta<float>,
           count, 32 * kWarps, 0, stream, task);
  if (a.bf16) return sm80_attend_backward(task, bf16{}, stream);
  if (a.f16) return sm80_attend_backward(task, f16{}, stream);
  plain_attend_backward(task, stream);
}

}  // namespace cuda
}  // namespace hexad
