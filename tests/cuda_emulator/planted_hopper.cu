// A product of matrices with Hopper's instructions, and the bugs that they invite.
#include "cuda/hopper.cuh"
#include "planted.h"

namespace {

using namespace hexad::cuda;

constexpr int kTiles = 5, kStages = 2, kSize = 64, kTileBytes = kSize * kSize * 2;
constexpr int kConsumers = 128;

enum Bug {
  none,
  no_barrier_wait,
  wrong_parity,
  no_expect,
  too_much_expected,
  no_release,
  early_release,
  no_wgmma_wait,
  no_wgmma_fence,
  no_async_fence,
  other_descriptor,
  half_of_the_group,
  no_store_fence,
  no_store_wait,
  no_init_fence,
  misaligned_tile,
  too_many_arrivals
};
const char* const kBugs[] = {"none",
                             "no_barrier_wait",
                             "wrong_parity",
                             "no_expect",
                             "too_much_expected",
                             "no_release",
                             "early_release",
                             "no_wgmma_wait",
                             "no_wgmma_fence",
                             "no_async_fence",
                             "other_descriptor",
                             "half_of_the_group",
                             "no_store_fence",
                             "no_store_wait",
                             "no_init_fence",
                             "misaligned_tile",
                             "too_many_arrivals"};

struct alignas(1024) Tiles {
  bf16 a[kStages][kSize * kSize], b[kStages][kSize * kSize], c[kSize * kSize];
  uint64_t full[kStages], empty[kStages];
};

// The place of an element in a tile with the 128-byte swizzle.
__device__ inline int place(int row, int column) {
  return row * kSize + ((column / 8 ^ row % 8) * 8 + column % 8);
}

// c = sum of the tiles a_t b_t (or b_t^T): b comes by bulk copies, a is written by the consumers.
template <bool kAcross>
__global__ void multiply(const bf16* a, const __grid_constant__ TensorMap b,
                         const __grid_constant__ TensorMap c, Bug bug) {
#ifdef HEXAD_HOPPER
  HEXAD_DYNAMIC_SHARED_1024(Tiles, tiles);
  const int i = int(threadIdx.x);
  if (i == kConsumers + 1) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&tiles->full[s], 1);
      barrier_init(&tiles->empty[s], kConsumers);
    }
    if (bug != no_init_fence) fence_barrier_init();
  }
  __syncthreads();
  if (i >= kConsumers) {
    if (i > kConsumers) return;
    for (int t = 0; t < kTiles; ++t) {
      const int s = t % kStages, parity = t / kStages % 2;
      barrier_wait(&tiles->empty[s], parity ^ 1);
      if (bug == no_expect)
        barrier_arrive(&tiles->full[s]);
      else
        barrier_arrive_expect(&tiles->full[s], kTileBytes + 16 * (bug == too_much_expected));
      if (bug == too_many_arrivals) barrier_arrive(&tiles->full[s]);
      tensor_load(tiles->b[s] + 8 * (bug == misaligned_tile), b, &tiles->full[s], 0, t * kSize, 0,
                  0);
    }
    return;
  }
  float sum[kSize / 2];
  for (int t = 0; t < kTiles; ++t) {
    const int s = t % kStages, parity = t / kStages % 2;
    for (int e = i; e < kSize * kSize; e += kConsumers)
      tiles->a[s][place(e / kSize, e % kSize)] = a[t * kSize * kSize + e];
    if (bug != no_async_fence) fence_async();
    named_sync(1, kConsumers);
    if (bug != no_barrier_wait)
      barrier_wait(&tiles->full[s], bug == wrong_parity ? parity ^ 1 : parity);
    if (bug == early_release) barrier_arrive(&tiles->empty[s]);
    if (bug == half_of_the_group && t == 2 && i >= 64) return;
    if (bug != no_wgmma_fence) wgmma_fence();
    for (int k = 0; k < kSize; k += 16)
      Wgmma<bf16, kSize, kAcross>::run(sum,
                                       swizzled_descriptor(shared_address(tiles->a[s])) +
                                           uint64_t(k * 2 / 16) +
                                           (bug == other_descriptor && i == 7),
                                       swizzled_descriptor(shared_address(tiles->b[s])) +
                                           uint64_t(kAcross ? k * 128 / 16 : k * 2 / 16),
                                       t > 0 || k > 0);
    wgmma_commit();
    if (bug != no_wgmma_wait) wgmma_wait<0>();
    keep(sum);
    if (bug != no_release && bug != early_release) barrier_arrive(&tiles->empty[s]);
  }
  const int row = i / 32 * 16 + i % 32 / 4;
  for (int e = 0; e < kSize / 2; ++e)
    tiles->c[place(row + e % 4 / 2 * 8, e / 4 * 8 + i % 4 * 2 + e % 2)] =
        __float2bfloat16_rn(sum[e]);
  if (bug == no_wgmma_wait) wgmma_wait<0>();
  if (bug != no_store_fence) fence_async();
  named_sync(1, kConsumers);
  if (i == 0) {
    tensor_store(c, tiles->c, 0, 0, 0, 0);
    bulk_commit();
    if (bug != no_store_wait) bulk_wait<0>();
  }
#endif
}

bool right(bool across, Bug bug) {
  constexpr int count = kTiles * kSize * kSize;
  Guarded<bf16> a(count, "a"), b(count, "b"), c(kSize * kSize, "c");
  for (int i = 0; i < count; ++i) {
    a.data[i] = __float2bfloat16_rn(float(i * 7 % 11 < 4));
    b.data[i] = __float2bfloat16_rn(float(i * 5 % 13 < 5));
  }
  const int64_t all[4] = {kSize, kTiles * kSize, 1, 1}, one[4] = {kSize, kSize, 1, 1};
  const int64_t strides[3] = {kSize * 2, count * 2, count * 2};
  launch("multiply", across ? multiply<true> : multiply<false>, 1, kConsumers + 32, sizeof(Tiles),
         nullptr, (const bf16*)a.data, tensor_map("multiply", b.data, true, all, strides, kSize),
         tensor_map("multiply", c.data, true, one, strides, kSize), bug);
  for (int i = 0; i < kSize; ++i)
    for (int j = 0; j < kSize; ++j) {
      float sum = 0;
      for (int t = 0; t < kTiles; ++t)
        for (int k = 0; k < kSize; ++k)
          sum += __bfloat162float(a.data[(t * kSize + i) * kSize + k]) *
                 __bfloat162float(
                     b.data[across ? (t * kSize + k) * kSize + j : (t * kSize + j) * kSize + k]);
      if (__bfloat162float(c.data[i * kSize + j]) != sum) return false;
    }
  return true;
}

}  // namespace

HEXAD_PLANTED(planted_hopper) {
  int number = 0;
  while (strcmp(kBugs[number], bug)) ++number;
  return outcome(seed, complaint, size,
                 [&] { return right(strcmp(kernel, "across") == 0, Bug(number)); });
}
