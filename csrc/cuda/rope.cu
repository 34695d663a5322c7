// A thread turns 16 bytes' worth of pairs: two 16-byte loads and stores in both layouts.
#include "cuda/rotate.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Blocks go over the pieces of a head's rows, then over heads and sequences.
template <class T>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs a, int64_t tiles, bool aligned) {
  const int64_t h = blockIdx.x / tiles % a.heads, b = blockIdx.x / tiles / a.heads;
  const unsigned pieces = unsigned((a.head_dim / 2 + kWide<T> - 1) / kWide<T>);
  const uint64_t at = blockIdx.x % tiles * kThreads + threadIdx.x;
  const int64_t row = at >> 32 ? int64_t(at / pieces) : int64_t(unsigned(at) / pieces);
  if (row >= a.rows) return;
  const int64_t pair = int64_t(at - uint64_t(row) * pieces) * kWide<T>;
  const int64_t position = row + (a.positions ? a.positions[b * a.positions_stride] : 0);
  float y[2][kWide<T>];
  const Runs runs = rotated(
      static_cast<const T*>(a.x) + b * a.x_stride[0] + h * a.x_stride[1] + row * a.x_stride[2],
      static_cast<const float*>(a.cos) + position * a.cos_stride,
      static_cast<const float*>(a.sin) + position * a.sin_stride, pair, a.head_dim, a.interleaved,
      aligned, y);
  T* const to = static_cast<T*>(a.y) + b * a.y_stride[0] + h * a.y_stride[1] + row * a.y_stride[2];
  store_wide(to + runs.at[0], runs.count[0], aligned, y[0]);
  store_wide(to + runs.at[1], runs.count[1], aligned, y[1]);
}

template <class T>
void run(const RopeArgs& a, hexad_stream stream) {
  const int64_t pieces = (a.head_dim / 2 + kWide<T> - 1) / kWide<T>;
  const int64_t tiles = (a.rows * pieces + kThreads - 1) / kThreads;
  const bool aligned = aligned_16(a.x, a.x_stride, sizeof(T)) &&
                       aligned_16(a.y, a.y_stride, sizeof(T)) &&
                       (a.interleaved || a.head_dim / 2 % kWide<T> == 0);
  launch("rope", rope_kernel<T>, blocks("rope", tiles * a.heads * a.batch), kThreads, 0, stream, a,
         tiles, aligned);
}

}  // namespace

void rope(const RopeArgs& args, hexad_stream stream) {
  if (args.batch * args.heads * args.rows == 0) return;
  args.bf16  ? run<bf16>(args, stream)
  : args.f16 ? run<f16>(args, stream)
             : run<float>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
