// Affine and additive coupling: a block per batch row, one pass over the row. The log-determinant
// is summed in double and in a fixed order (a thread's own elements, then a tree), without atomics.
#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__device__ float scale_of(float r, int map, float clamp) {
  if (map == 1) return clamp * tanhf(r / clamp);
  if (map == 2) {
    const float v = r + 2.f;
    return fminf(v, 0.f) - log1pf(expf(-fabsf(v)));
  }
  return r;
}

template <class T>
__global__ void __launch_bounds__(kThreads) coupling_kernel(CouplingArgs a) {
  const int64_t b = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + b * a.x_stride;
  T* y = static_cast<T*>(a.y) + b * a.y_stride;
  const T* shift = static_cast<const T*>(a.shift) + b * a.shift_stride;
  const T* raw = a.log_scale ? static_cast<const T*>(a.log_scale) + b * a.scale_stride : nullptr;
  double total = 0;
  for (int64_t i = threadIdx.x; i < a.row; i += kThreads) {
    bool active;
    int64_t j;
    if (a.checkerboard) {
      const int64_t in_channel = i % (a.height * a.width);
      active = (in_channel / a.width + in_channel % a.width) % 2 == (a.flip ? 0 : 1);
      j = i;
    } else {
      j = i - a.active_begin;
      active = j >= 0 && j < a.active;
    }
    if (!active) {
      y[i] = x[i];
      continue;
    }
    const float s = raw ? scale_of(to_float(raw[j]), a.scale_map, a.clamp) : 0.f;
    const float t = to_float(shift[j]), v = to_float(x[i]);
    put(y + i, a.inverse ? (v - t) * expf(-s) : fmaf(v, expf(s), t));
    total += s;
  }
  HEXAD_SHARED(double, partial, [kThreads]);
  partial[threadIdx.x] = total;
  for (int n = kThreads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) partial[threadIdx.x] += partial[threadIdx.x + n];
  }
  if (threadIdx.x == 0) a.log_det[b] = float(a.inverse ? -partial[0] : partial[0]);
}

}  // namespace

void coupling(const CouplingArgs& args, hexad_stream stream) {
  if (args.batch == 0) return;
  launch("coupling", args.bf16 ? coupling_kernel<bf16> : coupling_kernel<float>,
         blocks("coupling", args.batch), kThreads, 0, stream, args);
}

}  // namespace cuda
}  // namespace hexad
