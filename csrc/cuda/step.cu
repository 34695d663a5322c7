// A sampler's update: a thread per four elements reads each input once, however many outputs there
// are. The step's coefficients lie in shared memory; its index may lie on the device, so that a
// captured graph goes on with it, and its noise may be made here.
#include "cpu/philox.h"
#include "cuda/packs.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 256, kEach = 4;

template <class T>
struct alignas(kEach * sizeof(T)) Quad {
  T v[kEach];
};

// Four elements as floats; `whole`: all are there and p is aligned.
template <class T>
__device__ inline void fetch(float (&to)[kEach], const T* p, int64_t left, bool whole) {
  Quad<T> raw{};
  if (whole)
    raw = *reinterpret_cast<const Quad<T>*>(p);
  else
    for (int e = 0; e < kEach; ++e)
      if (e < left) raw.v[e] = p[e];
#pragma unroll
  for (int e = 0; e < kEach; ++e) to[e] = to_float(raw.v[e]);
}

// A coefficient of 0 leaves its input unread, so that the input may hold anything, or be absent.
__device__ inline void add(float (&sum)[kEach], float c, const float (&values)[kEach]) {
  if (c == 0) return;
#pragma unroll
  for (int e = 0; e < kEach; ++e) sum[e] = fmaf(c, values[e], sum[e]);
}

// Elements i to i + 3 of the noise: one block of normals where rows begin on blocks.
__device__ inline void make_noise(float (&z)[kEach], const StepArgs& a, int64_t index, int64_t i) {
  const uint64_t offset = uint64_t(index) + 1;
  if (a.row_size % kEach == 0) {
    const int64_t row = i / a.row_size;
    return normal_block(uint64_t(a.seeds[row]), offset, uint64_t(i - row * a.row_size) / 4, z);
  }
  for (int e = 0; e < kEach && i + e < a.size; ++e) {
    const int64_t row = (i + e) / a.row_size, at = i + e - row * a.row_size;
    float four[4];
    normal_block(uint64_t(a.seeds[row]), offset, uint64_t(at) / 4, four);
    z[e] = at % 4 == 0 ? four[0] : at % 4 == 1 ? four[1] : at % 4 == 2 ? four[2] : four[3];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(StepArgs a, bool packs) {
  HEXAD_SHARED(float, row, [32]);
  int64_t index = a.index;
  if (a.place) {
    index =
        a.place64 ? *static_cast<const int64_t*>(a.place) : *static_cast<const int32_t*>(a.place);
    index = index < 0 ? 0 : index < a.steps ? index : a.steps - 1;
  }
  if (threadIdx.x < 32) row[threadIdx.x] = (a.place ? a.table + index * 32 : a.row)[threadIdx.x];
  __syncthreads();
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kEach, left = a.size - i;
  if (left <= 0) return;
  const bool whole = packs && left >= kEach;

  float x[kEach], m[kEach], p[kEach] = {}, z[kEach] = {};
  fetch(x, a.x + i, left, whole);
  fetch(m, static_cast<const T*>(a.model_output) + i, left, whole);
  if (a.uncond) {
    float u[kEach];
    fetch(u, static_cast<const T*>(a.uncond) + i, left, whole);
#pragma unroll
    for (int e = 0; e < kEach; ++e) m[e] = fmaf(row[3], m[e] - u[e], u[e]);
  }
  add(p, row[0], x);
  add(p, row[1], m);
  const float clip = row[2];
#pragma unroll
  for (int e = 0; e < kEach; ++e)
    p[e] = p[e] > clip ? clip : p[e] < -clip ? -clip : p[e];  // NaN stays
  const bool noisy =
      row[15] != 0 || (a.outputs > 1 && row[23] != 0) || (a.outputs > 2 && row[31] != 0);
  if (a.seeds && noisy) make_noise(z, a, index, i);
  if (a.noise && noisy) fetch(z, a.noise + i, left, whole);

#pragma unroll
  for (int k = 0; k < 3; ++k) {
    if (k >= a.outputs) break;
    const float* c = row + 8 * (1 + k);
    float sum[kEach] = {}, other[kEach];
    add(sum, c[0], x);
    add(sum, c[1], m);
    add(sum, c[2], p);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* values = j < 3 ? a.history[j] : a.last;
      if (c[3 + j] == 0 || !values) continue;
      fetch(other, values + i, left, whole);
      add(sum, c[3 + j], other);
    }
    if (a.noise || a.seeds) add(sum, c[7], z);
    float* out = a.out[k] + i;
    if (whole) {
      Quad<float> quad;
#pragma unroll
      for (int e = 0; e < kEach; ++e) quad.v[e] = sum[e];
      store_whole(out, quad);
    } else {
      for (int e = 0; e < kEach; ++e)
        if (e < left) out[e] = sum[e];
    }
  }
}

}  // namespace

void step(const StepArgs& args, hexad_stream stream) {
  if (args.size == 0) return;
  bool packs = true;
  for (const void* p : {static_cast<const void*>(args.x), args.model_output, args.uncond,
                        static_cast<const void*>(args.last), static_cast<const void*>(args.noise)})
    packs = packs && in_packs(p, 0, 1);
  for (int k = 0; k < 3; ++k)
    packs = packs && in_packs(args.history[k], 0, 1) && in_packs(args.out[k], 0, 1);
  const int64_t quads = (args.size + kEach - 1) / kEach;
  launch("step", args.bf16 ? step_kernel<bf16> : step_kernel<float>,
         blocks("step", (quads + kThreads - 1) / kThreads), kThreads, 0, stream, args, packs);
}

}  // namespace cuda
}  // namespace hexad
