// A sampler's update: a thread per element reads each input once, however many outputs there are.
#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// A coefficient of 0 leaves its input unread, so that the input may hold anything, or be absent.
__device__ inline void add(float& sum, float c, const float* values, int64_t i) {
  if (c != 0 && values) sum = fmaf(c, values[i], sum);
}
__device__ inline void add(float& sum, float c, float value) {
  if (c != 0) sum = fmaf(c, value, sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(StepArgs a) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.size) return;
  const float x = a.x[i];
  float m = to_float(static_cast<const T*>(a.model_output)[i]);
  if (a.uncond) {
    const float u = to_float(static_cast<const T*>(a.uncond)[i]);
    m = fmaf(a.row[3], m - u, u);
  }
  float p = 0.f;
  add(p, a.row[0], x);
  add(p, a.row[1], m);
  const float clip = a.row[2];
  p = p > clip ? clip : p < -clip ? -clip : p;  // NaN stays
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    if (k >= a.outputs) break;
    const float* c = a.row + 8 * (1 + k);
    float sum = 0.f;
    add(sum, c[0], x);
    add(sum, c[1], m);
    add(sum, c[2], p);
#pragma unroll
    for (int j = 0; j < 3; ++j) add(sum, c[3 + j], a.history[j], i);
    add(sum, c[6], a.last, i);
    add(sum, c[7], a.noise, i);
    a.out[k][i] = sum;
  }
}

}  // namespace

void step(const StepArgs& args, hexad_stream stream) {
  if (args.size == 0) return;
  launch("step", args.bf16 ? step_kernel<bf16> : step_kernel<float>,
         blocks("step", (args.size + kThreads - 1) / kThreads), kThreads, 0, stream, args);
}

}  // namespace cuda
}  // namespace hexad
