// The 1x1 convolution as a product of tiles: 32 outputs by 128 pixels of an image to a block, 4 by
// 4 to a thread, over the channels in runs of 32. A run is summed by itself, so that many channels
// keep their accuracy; an output's order of sums depends on the channels alone.
#include "cuda/packs.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 256, kOutputs = 32, kPixels = 128, kRun = 32, kEach = 4;

template <class T>
__global__ void __launch_bounds__(kThreads) invconv_kernel(InvconvArgs a, int64_t tiles) {
  HEXAD_SHARED(float, values, [kRun][kPixels]);
  HEXAD_SHARED(float, weights, [kRun][kOutputs + 1]);
  const int64_t image = blockIdx.x / tiles, first = (blockIdx.x - image * tiles) * kPixels;
  const int64_t outputs = int64_t(blockIdx.y) * kOutputs;
  const T* x = static_cast<const T*>(a.x) + image * a.channels * a.pixels + first;
  T* y = static_cast<T*>(a.y) + image * a.channels * a.pixels + first;
  const int pixels = int(a.pixels - first < kPixels ? a.pixels - first : kPixels);
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;

  float total[kEach][kEach];
#pragma unroll
  for (int o = 0; o < kEach; ++o) {
    const int64_t output = outputs + group * kEach + o;
    const float start = a.bias && output < a.channels ? a.bias[output] : 0.f;
#pragma unroll
    for (int p = 0; p < kEach; ++p) total[o][p] = start;
  }
  for (int64_t c = 0; c < a.channels; c += kRun) {
    const int run = int(a.channels - c < kRun ? a.channels - c : kRun);
    __syncthreads();
    for (int i = threadIdx.x; i < run * kPixels; i += kThreads) {
      const int k = i / kPixels, p = i % kPixels;
      values[k][p] = p < pixels ? to_float(x[(c + k) * a.pixels + p]) : 0.f;
    }
    for (int i = threadIdx.x; i < kRun * kOutputs; i += kThreads) {
      const int o = i / kRun, k = i % kRun;
      const bool there = k < run && outputs + o < a.channels;
      weights[k][o] = there ? a.weight[(outputs + o) * a.channels + c + k] : 0.f;
    }
    __syncthreads();
    float sum[kEach][kEach] = {};
    for (int k = 0; k < run; ++k) {
      float w[kEach], v[kEach];
#pragma unroll
      for (int o = 0; o < kEach; ++o) w[o] = weights[k][group * kEach + o];
#pragma unroll
      for (int p = 0; p < kEach; ++p) v[p] = values[k][lane + 32 * p];
#pragma unroll
      for (int o = 0; o < kEach; ++o)
#pragma unroll
        for (int p = 0; p < kEach; ++p) sum[o][p] = fmaf(w[o], v[p], sum[o][p]);
    }
#pragma unroll
    for (int o = 0; o < kEach; ++o)
#pragma unroll
      for (int p = 0; p < kEach; ++p) total[o][p] += sum[o][p];
  }
#pragma unroll
  for (int o = 0; o < kEach; ++o) {
    const int64_t output = outputs + group * kEach + o;
    if (output >= a.channels) continue;
#pragma unroll
    for (int p = 0; p < kEach; ++p)
      if (lane + 32 * p < pixels) put(y + output * a.pixels + lane + 32 * p, total[o][p]);
  }
}

}  // namespace

void invconv(const InvconvArgs& args, hexad_stream stream) {
  const int64_t tiles = (args.pixels + kPixels - 1) / kPixels;
  const dim3 grid(blocks("invconv", args.batch * tiles),
                  unsigned((args.channels + kOutputs - 1) / kOutputs));
  launch("invconv", args.bf16 ? invconv_kernel<bf16> : invconv_kernel<float>, grid, kThreads, 0,
         stream, args, tiles);
}

}  // namespace cuda
}  // namespace hexad
