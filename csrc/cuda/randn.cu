// Counter-based standard normals, the bits that the CPU gives: a thread per block of four.
#include "cpu/philox.h"
#include "cuda/packs.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) randn_kernel(RandnArgs a, int64_t quads, bool packs) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.batch * quads) return;
  const int64_t row = i / quads, block = i - row * quads;
  Pack<float> z;
  normal_block(uint64_t(a.seeds[row]), uint64_t(a.offset), uint64_t(block), z.v);
  store_pack(a.out + row * a.row + 4 * block, z, a.row - 4 * block, packs);
}

}  // namespace

void randn(const RandnArgs& args, hexad_stream stream) {
  const int64_t quads = (args.row + 3) / 4;
  launch("randn", randn_kernel, blocks("randn", (args.batch * quads + kThreads - 1) / kThreads),
         kThreads, 0, stream, args, quads, in_packs(args.out, args.row, sizeof(float)));
}

}  // namespace cuda
}  // namespace hexad
