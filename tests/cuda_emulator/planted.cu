// Kernels with one planted bug each, and the same kernels without it. planted(name, seed) returns 0
// for a right result, 1 for a wrong one, and the emulator's complaint otherwise.
#include <cstdio>

#include "cuda/common.cuh"

namespace {

using hexad::cuda::kFullWarp;

constexpr int kThreads = 64;

enum Bug {
  none,
  no_barrier,
  no_second_barrier,
  half_barrier,
  bad_mask,
  outside_mask,
  exited_lane,
  past_end,
  unset,
  stuck
};

// Sums each thread's number over the block, twice over the same array.
__global__ void sum_twice(int* out, Bug bug) {
  HEXAD_SHARED(int, part, [kThreads]);
  const int i = int(threadIdx.x);
  for (int round = 0; round < 2; ++round) {
    part[i] = i + round;
    if (bug == half_barrier ? i < 40 : bug != no_barrier) __syncthreads();
    int total = 0;
    for (int j = 0; j < kThreads; ++j) total += part[j];
    out[round * kThreads + i] = total;
    if (bug != no_second_barrier) __syncthreads();
  }
  if (bug == past_end && i == 0) part[kThreads + (bug != past_end)] = 1;
}

__global__ void exchange(int* out, Bug bug) {
  const int i = int(threadIdx.x), lane = i % 32;
  if (bug == exited_lane && lane == 7) return;
  if (bug == stuck && lane < 16) __syncthreads();
  const unsigned mask = bug == bad_mask       ? 0xfffffff0u
                        : bug == outside_mask ? 0x0000ffffu
                                              : kFullWarp;
  int got = 0;
  if (bug != outside_mask || lane < 16)
    got = __shfl_xor_sync(mask, i, bug == outside_mask ? 16 : 1);
  const int up = __shfl_up_sync(kFullWarp, got, 1), down = __shfl_down_sync(kFullWarp, up, 1);
  const unsigned votes = __ballot_sync(kFullWarp, lane % 3 == 0);
  const int pair = __shfl_sync(kFullWarp, down, 1, 2);
  __syncwarp();
  out[i] = pair + (votes == 0x49249249u);
}

__global__ void read_unset(float* out, Bug bug) {
  HEXAD_DYNAMIC_SHARED(float, values);
  if (bug != unset) values[threadIdx.x] = 1.f;
  out[threadIdx.x] = values[threadIdx.x];
}

bool is(const char* a, const char* b) {
  return strcmp(a, b) == 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int planted(const char* kernel, int bug, int seed,
                                                              char* complaint, int size) {
  using hexad::cuda::launch;
  cuda_emulator::seed(uint64_t(seed));
  int out[2 * kThreads] = {};
  float values[kThreads] = {};
  try {
    if (is(kernel, "sum_twice"))
      launch(kernel, sum_twice, 1, kThreads, 0, nullptr, +out, Bug(bug));
    else if (is(kernel, "exchange"))
      launch(kernel, exchange, 1, kThreads, 0, nullptr, +out, Bug(bug));
    else
      launch(kernel, read_unset, 1, kThreads, sizeof values, nullptr, +values, Bug(bug));
  } catch (const hexad::Failure&) {
    snprintf(complaint, size_t(size), "%s", hexad_last_error());
    return 2;
  }
  int wrong = 0;
  for (int i = 0; i < kThreads; ++i) {
    if (is(kernel, "sum_twice"))
      wrong += out[i] != 2016 || out[kThreads + i] != 2016 + kThreads;
    else if (is(kernel, "exchange"))
      // Down after up undoes it but for the last lane; then both lanes of a pair take the odd
      // one's.
      wrong += out[i] != i / 2 * 2 + (i % 32 >= 30) + 1;
    else
      wrong += !(values[i] == 1.f);
  }
  return wrong != 0;
}
