// A product of small integers, exact in every order, through cp.async, ldmatrix and mma.sync, and
// the same with one planted bug each. planted_ampere(dtype, bug, seed) answers as planted() does.
#include <cstdio>

#include "cuda/ampere.cuh"

namespace {

using namespace hexad::cuda;

constexpr int kRows = 128, kColumns = 16, kInner = 44, kStep = 16, kSteps = 3;
constexpr int kPitch = kStep + 8, kPitchB = kColumns + 8;

enum Bug { none, no_wait, short_wait, no_barrier, no_second_barrier, unfilled, misaligned, apart };

// C = A B, one warp per 16 rows; A's tile comes in copies of kBytes, what lies past kInner is 0.
template <class T, int kBytes>
__global__ void product(const T* a, const T* b, float* out, Bug bug) {
  HEXAD_SHARED(T, left, [2][kRows * kPitch]);
  HEXAD_SHARED(T, right, [2][kStep * kPitchB]);
  const int thread = int(threadIdx.x), lane = thread % 32, first = thread / 32 * 16;
  constexpr int kPerCopy = kBytes / int(sizeof(T));
  const auto fetch = [&](int step) {
    const int from = step * kStep;
    for (int i = thread; i < kRows * kStep / kPerCopy; i += int(blockDim.x)) {
      const int r = i / (kStep / kPerCopy), c = i % (kStep / kPerCopy) * kPerCopy;
      const int there = kInner - from - c;
      const int bytes = there <= 0 ? 0 : there < kPerCopy ? there * int(sizeof(T)) : kBytes;
      cp_async<kBytes>(left[step % 2] + r * kPitch + c + (bug == misaligned),
                       bytes ? a + r * kInner + from + c : a, bug == unfilled ? kBytes : bytes);
    }
    for (int i = thread; i < kStep * kColumns / 8; i += int(blockDim.x)) {
      const int r = i / (kColumns / 8), c = i % (kColumns / 8) * 8;
      cp_async<16>(right[step % 2] + r * kPitchB + c, b + (from + r) * kColumns + c);
    }
    cp_async_commit();
  };
  float c[2][4] = {};
  fetch(0);
  for (int step = 0; step < kSteps; ++step) {
    if (step + 1 < kSteps) fetch(step + 1);
    if (bug != no_wait) {
      if (bug == short_wait || step + 1 < kSteps)
        cp_async_wait<1>();
      else
        cp_async_wait<0>();
    }
    if (bug != no_barrier) __syncthreads();
    unsigned x[4], y[4], z[2];
    ldmatrix_x4(x, shared_at(left[step % 2] + (first + lane % 16) * kPitch + lane / 16 * 8));
    ldmatrix_x4_trans(y, shared_at(right[step % 2] + lane % 16 * kPitchB + lane / 16 * 8));
    mma_m16n8k16<T>(c[0], x, y[0], y[1]);
    ldmatrix_x2_trans(z, shared_at(right[step % 2] + lane % 16 * kPitchB + 8));
    if (bug == apart && lane == 3) __syncwarp();
    mma_m16n8k16<T>(c[1], x, z[0], z[1]);
    if (bug != no_second_barrier) __syncthreads();
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      out[(first + lane / 4 + i / 2 * 8) * kColumns + 8 * n + lane % 4 * 2 + i % 2] = c[n][i];
}

// Whether ldmatrix with and without `trans` are each other's transposes, for x1 and x2.
template <class T>
__global__ void turn(const T* a, float* out) {
  HEXAD_SHARED(T, tile, [16 * 8]);
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 16 * 8; i += 32) tile[i] = a[i];
  __syncthreads();
  unsigned one[1], one_turned[1], two[2], two_turned[2];
  ldmatrix_x1(one, shared_at(tile + lane % 8 * 8));
  ldmatrix_x1_trans(one_turned, shared_at(tile + lane % 8 * 8));
  ldmatrix_x2(two, shared_at(tile + lane % 16 * 8));
  ldmatrix_x2_trans(two_turned, shared_at(tile + lane % 16 * 8));
  const int g = lane / 4, t = lane % 4;
  bool right = one[0] == two[0] && one_turned[0] == two_turned[0];
  for (int m = 0; m < 2; ++m)
    for (int i = 0; i < 2; ++i) {
      T plain, turned;
      plain.bits = uint16_t(two[m] >> 16 * i), turned.bits = uint16_t(two_turned[m] >> 16 * i);
      right = right && to_float(plain) == to_float(a[(8 * m + g) * 8 + 2 * t + i]) &&
              to_float(turned) == to_float(a[(8 * m + 2 * t + i) * 8 + g]);
    }
  out[lane] = right;
}

template <class T>
int run(Bug bug) {
  alignas(16) T a[kRows * kInner + 16], b[kSteps * kStep * kColumns];
  float out[kRows * kColumns] = {}, turned[32] = {};
  for (int i = 0; i < kRows * kInner + 16; ++i) put(a + i, float(i * 7 % 13 - 6));
  for (int i = 0; i < kSteps * kStep * kColumns; ++i) put(b + i, float(i * 5 % 11 - 5));
  int wrong = 0;
  void (*const kernels[])(const T*, const T*, float*, Bug) = {product<T, 4>, product<T, 8>};
  for (auto kernel : kernels) {
    launch("product", kernel, 1, 2 * kRows, 0, nullptr, +a, +b, +out, bug);
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j) {
        float sum = 0;
        for (int k = 0; k < kInner; ++k)
          sum += to_float(a[i * kInner + k]) * to_float(b[k * kColumns + j]);
        wrong += !(out[i * kColumns + j] == sum);
      }
  }
  launch("turn", turn<T>, 1, 32, 0, nullptr, +a, +turned);
  for (float right : turned) wrong += right != 1.f;
  return wrong != 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int planted_ampere(const char* dtype, int bug,
                                                                     int seed, char* complaint,
                                                                     int size) {
  cuda_emulator::seed(uint64_t(seed));
  try {
    return strcmp(dtype, "bf16") == 0 ? run<bf16>(Bug(bug)) : run<f16>(Bug(bug));
  } catch (const hexad::Failure&) {
    snprintf(complaint, size_t(size), "%s", hexad_last_error());
    return 2;
  }
}
