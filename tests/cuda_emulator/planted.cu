// Kernels with one planted bug each, and the same kernels without it.
#include "planted.h"

namespace {

using hexad::cuda::kFullWarp;
using hexad::cuda::launch;

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
  before_start,
  unset,
  stuck,
  read_past_end,
  not_atomic,
  wrong_id,
  wrong_count,
  different_counts,
  misaligned,
  deep
};
const char* const kBugs[] = {"none",
                             "no_barrier",
                             "no_second_barrier",
                             "half_barrier",
                             "bad_mask",
                             "outside_mask",
                             "exited_lane",
                             "past_end",
                             "before_start",
                             "unset",
                             "stuck",
                             "read_past_end",
                             "not_atomic",
                             "wrong_id",
                             "wrong_count",
                             "different_counts",
                             "misaligned",
                             "deep"};

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
  if (bug == before_start && i == 0) part[-int(bug == before_start)] = 1;
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

__attribute__((noinline)) void use_stack(int i) {
  volatile char large[80 << 10];
  large[0] = char(i);
}

__global__ void copy(const int* in, int* out, int count, Bug bug) {
  const int i = int(threadIdx.x);
  const int last = count + (bug == past_end);
  for (int j = i; j < last; j += kThreads)
    out[j] = j == count ? 0 : in[bug == read_past_end ? j + 1 : bug == before_start ? j - 1 : j];
  if (bug == deep) use_stack(i);
}

__global__ void count(int* out, Bug bug) {
  if (bug == not_atomic)
    ++*out;
  else
    atomicAdd(out, 1);
}

// Two warps hand numbers to the next two through named barriers, as a producer to its consumers.
__global__ void hand_over(int* out, Bug bug) {
  HEXAD_SHARED(int, box, [kThreads]);
  const int i = int(threadIdx.x);
  constexpr int all = 2 * kThreads;
  for (int round = 0; round < 3; ++round) {
    if (i < kThreads) {
      if (round) cuda_emulator::named_barrier(2, all, true, __FILE__, __LINE__);
      box[i] = i + round;
      cuda_emulator::named_barrier(bug == wrong_id ? 3 : 1, bug == wrong_count ? all + 32 : all,
                                   false, __FILE__, __LINE__);
    } else {
      if (bug != no_barrier)
        cuda_emulator::named_barrier(1,
                                     bug == wrong_count        ? all + 32
                                     : bug == different_counts ? all - 32
                                                               : all,
                                     true, __FILE__, __LINE__);
      out[round * kThreads + i - kThreads] = box[i - kThreads];
      if (round < 2) cuda_emulator::named_barrier(2, all, false, __FILE__, __LINE__);
    }
  }
}

__global__ void add_four(const float* in, float* out, Bug bug) {
  const float4 a = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x + (bug == misaligned));
  out[threadIdx.x] = a.x + a.y + a.z + a.w;
}

bool is(const char* a, const char* b) {
  return strcmp(a, b) == 0;
}

bool right(const char* kernel, Bug bug) {
  if (is(kernel, "sum_twice") || is(kernel, "hand_over")) {
    Guarded<int> out(3 * kThreads, "out");
    const bool sum = is(kernel, "sum_twice");
    launch(kernel, sum ? sum_twice : hand_over, 1, sum ? kThreads : 2 * kThreads, 0, nullptr,
           out.data, bug);
    for (int i = 0; i < kThreads; ++i)
      for (int round = 0; round < (sum ? 2 : 3); ++round)
        if (out.data[round * kThreads + i] != (sum ? 2016 + round * kThreads : i + round))
          return false;
  } else if (is(kernel, "exchange")) {
    Guarded<int> out(kThreads, "out");
    launch(kernel, exchange, 1, kThreads, 0, nullptr, out.data, bug);
    // Down after up undoes it but for the last lane; then both lanes of a pair take the odd one's.
    for (int i = 0; i < kThreads; ++i)
      if (out.data[i] != i / 2 * 2 + (i % 32 >= 30) + 1) return false;
  } else if (is(kernel, "read_unset")) {
    Guarded<float> out(kThreads, "out");
    launch(kernel, read_unset, 1, kThreads, kThreads * sizeof(float), nullptr, out.data, bug);
    for (int i = 0; i < kThreads; ++i)
      if (!(out.data[i] == 1.f)) return false;
  } else if (is(kernel, "copy")) {
    constexpr int size = 100;
    Guarded<int> in(size, "in", bug == before_start), out(size, "out");
    for (int i = 0; i < size; ++i) in.data[i] = i;
    launch(kernel, copy, 1, kThreads, 0, nullptr, (const int*)in.data, out.data, size, bug);
    return memcmp(in.data, out.data, size * sizeof(int)) == 0;
  } else if (is(kernel, "count")) {
    Guarded<int> out(1, "out");
    launch(kernel, count, 2, kThreads, 0, nullptr, out.data, bug);
    return *out.data == 2 * kThreads;
  } else {
    Guarded<float> in(4 * kThreads, "in"), out(kThreads, "out");
    for (int i = 0; i < 4 * kThreads; ++i) in.data[i] = float(i);
    launch(kernel, add_four, 1, kThreads, 0, nullptr, (const float*)in.data, out.data, bug);
    for (int i = 0; i < kThreads; ++i)
      if (out.data[i] != float(16 * i + 6)) return false;
  }
  return true;
}

}  // namespace

HEXAD_PLANTED(planted) {
  int number = 0;
  while (!is(kBugs[number], bug)) ++number;
  return outcome(seed, complaint, size, [&] { return right(kernel, Bug(number)); });
}
