// linear of 1 to 16 rows: the weight is read once, 16 bytes a lane, straight into registers, and
// the eight warps of a block share its inputs in blocks of 128. For bfloat16 and float16 the matrix
// instruction's rows are 16 of the weight's and its columns the rows of x; an input's place in the
// sum is free, and chosen so that a lane's operands are 8 neighbouring inputs. A sum's order is the
// same for any number of rows.
#include "cuda/ampere.cuh"
#include "cuda/linear_finish.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kInputs = 128;  // of a block of inputs

struct Sixteen {
  uint32_t word[4];
};

// 8 elements of 2 bytes; the rest zeros where fewer exist.
template <class T>
__device__ inline Sixteen sixteen(const T* p, int64_t count, bool aligned) {
  if (aligned && count >= 8) {
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
  }
  T element[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count)
      element[i] = p[i];
    else
      put(element + i, 0.f);
  Sixteen all;
  memcpy(&all, element, sizeof all);
  return all;
}

// kTiles of 8 rows of x.
template <class T, int kTiles>
__global__ void __launch_bounds__(kLinearThreads, 2) linear_kernel(LinearArgs a, bool aligned) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const T* weight[2];
  bool there[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = weight_row(a, blockIdx.x, g + 8 * half, 16);
    there[half] = row < a.outputs;
    weight[half] = static_cast<const T*>(a.weight) + (there[half] ? row * a.weight_stride : 0);
  }
  const auto load = [&](int64_t k, Sixteen(&w)[4][2]) {
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t at = k + 32 * c + 8 * t;
        w[c][half] = sixteen(weight[half] + at, there[half] ? a.inputs - at : 0, aligned);
      }
  };

  float sum[kTiles][4] = {};
  Sixteen w[4][2];
  constexpr int64_t kStep = kLinearWarps * kInputs;
  int64_t k = warp * kInputs;
  load(k, w);
  for (; k < a.inputs; k += kStep) {
    Sixteen next[4][2];
    load(k + kStep, next);
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int64_t at = k + 32 * c + 8 * t, row = 8 * n + g;
        const Sixteen x = sixteen(static_cast<const T*>(a.x) + row * a.x_stride + at,
                                  row < a.rows ? a.inputs - at : 0, aligned);
        const uint32_t one[4] = {w[c][0].word[0], w[c][1].word[0], w[c][0].word[1],
                                 w[c][1].word[1]};
        const uint32_t other[4] = {w[c][0].word[2], w[c][1].word[2], w[c][0].word[3],
                                   w[c][1].word[3]};
        mma_m16n8k16<T>(sum[n], one, x.word[0], x.word[1]);
        mma_m16n8k16<T>(sum[n], other, x.word[2], x.word[3]);
      }
#pragma unroll
    for (int c = 0; c < 4; ++c) w[c][0] = next[c][0], w[c][1] = next[c][1];
  }

  constexpr int kColumns = 8 * kTiles;
  HEXAD_SHARED(float, sums, [kLinearWarps * 16 * kColumns]);
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[(warp * 16 + g + i / 2 * 8) * kColumns + 8 * n + 2 * t + i % 2] = sum[n][i];
  finish_block<T, 16, kColumns>(a, blockIdx.x, 0, sums);
}

// Sums of N values over a warp, for N - 1 exchanges and a few more: at each step a lane passes on
// half of what it has. Lane l ends with value l N / 32; every value's tree is the same for any N.
template <int N>
__device__ inline float sums_over_warp(float (&v)[N]) {
  const unsigned lane = threadIdx.x % 32;
  int n = N / 2;
#pragma unroll
  for (int step = 16; step > 0; step /= 2, n /= 2) {
    if (n == 0) {
      v[0] += __shfl_xor_sync(kFullWarp, v[0], step);
      continue;
    }
    const bool upper = lane & unsigned(step);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if (i >= n) break;
      const float kept = upper ? v[i + n] : v[i], passed = upper ? v[i] : v[i + n];
      v[i] = kept + __shfl_xor_sync(kFullWarp, passed, step);
    }
  }
  return v[0];
}

// float32, on the ordinary cores: four of the weight's rows, kRows of x.
template <int kRows>
__global__ void __launch_bounds__(kLinearThreads, 2)
    linear_kernel_float(LinearArgs a, bool aligned) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t first = int64_t(blockIdx.y) * kRows;
  float sum[4 * kRows] = {};
  for (int64_t k = warp * kInputs + 4 * lane; k < a.inputs; k += kLinearWarps * kInputs) {
    float w[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = weight_row(a, blockIdx.x, i, 4);
      const bool there = row < a.outputs;
      load_wide(static_cast<const float*>(a.weight) + (there ? row * a.weight_stride + k : 0),
                there ? a.inputs - k : 0, aligned, w[i]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool there = first + r < a.rows;
      float x[4];
      load_wide(static_cast<const float*>(a.x) + (there ? (first + r) * a.x_stride + k : 0),
                there ? a.inputs - k : 0, aligned, x);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i * kRows + r] = fmaf(w[i][j], x[j], sum[i * kRows + r]);
    }
  }
  HEXAD_SHARED(float, sums, [kLinearWarps * 4 * kRows]);
  constexpr int kLanes = 8 / kRows;  // that end with the same sum
  const float all = sums_over_warp(sum);
  if (lane % kLanes == 0) sums[warp * 4 * kRows + lane / kLanes] = all;
  finish_block<float, 4, kRows>(a, blockIdx.x, first, sums);
}

template <class T>
void run(const LinearArgs& a, hexad_stream stream) {
  launch("linear", a.rows <= 8 ? linear_kernel<T, 1> : linear_kernel<T, 2>,
         linear_blocks(a, "linear", 16), kLinearThreads, 0, stream, a, aligned_rows(a, sizeof(T)));
}

template <int kRows>
void run_float(const LinearArgs& a, hexad_stream stream) {
  const dim3 grid(linear_blocks(a, "linear", 4), unsigned((a.rows + kRows - 1) / kRows));
  launch("linear", linear_kernel_float<kRows>, grid, kLinearThreads, 0, stream, a,
         aligned_rows(a, sizeof(float)));
}

}  // namespace

void linear(const LinearArgs& args, hexad_stream stream) {
  if (args.rows == 0 || args.outputs == 0) return;
  if (args.rows > kMostLinearRows)
    fail(HEXAD_UNSUPPORTED, "linear: more than %d rows on CUDA", int(kMostLinearRows));
  if (args.bf16)
    run<bf16>(args, stream);
  else if (args.f16)
    run<f16>(args, stream);
  else if (args.rows == 1)
    run_float<1>(args, stream);
  else if (args.rows <= 4)
    run_float<4>(args, stream);
  else
    run_float<8>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
