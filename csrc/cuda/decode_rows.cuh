// What decode's kernels share: which keys a block has, where they lie, how a score is made of a
// product, and how a block's warps hand over what they summed.
#pragma once

#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kDecodeWarps = 4, kDecodeThreads = 32 * kDecodeWarps;

// A number that all lanes have, as one the compiler sees to be so: without it every shuffle in a
// loop of so many turns is compiled twice, once for lanes that have parted.
__device__ inline int same_in_warp(int x) {
  return __shfl_sync(kFullWarp, x, 0);
}

// The part of a row that a block has: `heads` query heads of a key head, the keys of one split.
struct Part {
  int64_t b, kv_head, head;  // the first of its heads
  int heads;
  int64_t length, start;  // the row sees keys [start, length)
  int64_t begin, end;     // of those the block's
  int64_t split, splits;  // its number among the row's
  bool idle;
};

// Blocks run from the last split to the first: the long ones come first.
template <int kHeads>
__device__ inline Part part_of(const DecodeArgs& a) {
  Part p;
  const int64_t group = a.heads / a.kv_heads, teams = (group + kHeads - 1) / kHeads;
  const int64_t per_split = a.batch * a.kv_heads * teams;
  const int64_t row = blockIdx.x % per_split;
  p.split = gridDim.x / per_split - 1 - blockIdx.x / per_split;
  p.b = row / teams / a.kv_heads;
  p.kv_head = row / teams % a.kv_heads;
  const int64_t first = row % teams * kHeads;
  p.head = p.kv_head * group + first;
  p.heads = int(group - first < kHeads ? group - first : kHeads);
  p.length = a.lengths[p.b * a.lengths_stride];
  if (p.length > a.capacity) p.length = a.capacity;
  p.start = a.left < 0 || a.left >= p.length ? 0 : p.length - 1 - a.left;
  const int64_t at = split_of(p.start) + p.split;
  p.splits = p.length > 0 ? split_of(p.length - 1) - split_of(p.start) + 1 : 0;
  p.begin = split_begin(at) > p.start ? split_begin(at) : p.start;
  p.end = split_begin(at + 1) < p.length ? split_begin(at + 1) : p.length;
  // An empty row's output is split 0's to write.
  p.idle = p.split >= p.splits && p.split > 0;
  return p;
}

// A page number, asked for before it is needed. Keys and pages fit 32 bits: lengths do.
__device__ inline int32_t page_of(const DecodeArgs& a, const Part& p, int64_t key) {
  if (!a.table || key < p.begin || key >= p.end) return 0;
  return a.table[p.b * a.table_stride[0] +
                 int64_t(unsigned(key) / unsigned(a.page)) * a.table_stride[1]];
}
__device__ inline int64_t offset_of(const DecodeArgs& a, const Part& p, const int64_t* stride,
                                    int32_t page, int64_t key) {
  const int64_t head = p.kv_head * stride[1];
  if (!a.table) return head + p.b * stride[0] + key * stride[2];
  return head + page * stride[0] + int64_t(unsigned(key) % unsigned(a.page)) * stride[2];
}

// From scale <q, k> to what the softmax takes.
__device__ inline float score_of(const DecodeArgs& a, const Part& p, float s, float slope,
                                 int64_t key) {
  if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
  if (a.slopes) s = fmaf(-slope, float(p.length - 1 - key), s);
  return s;
}
__device__ inline float slope_of(const DecodeArgs& a, const Part& p, int head) {
  return a.slopes && head < p.heads ? a.slopes[(p.head + head) * a.slopes_stride] : 0.f;
}

// A finished row: out and lse, its sink joined.
__device__ inline float denominator(const DecodeArgs& a, int64_t head, float& m, float total,
                                    float& weight) {
  weight = 1.f;
  if (a.sinks) {
    const float sink = a.sinks[head * a.sinks_stride], most = fmaxf(m, sink);
    const float base = most == -INFINITY ? 0.f : most;
    weight = expf(m - base);
    total = fmaf(total, weight, expf(sink - base));
    m = most;
  }
  return total;
}

__device__ inline void put_as(const DecodeArgs& a, int64_t at, float x) {
  if (a.bf16)
    put(static_cast<bf16*>(a.out) + at, x);
  else if (a.f16)
    put(static_cast<f16*>(a.out) + at, x);
  else
    put(static_cast<float*>(a.out) + at, x);
}

__device__ inline void finish_column(const DecodeArgs& a, int64_t b, int64_t head, int64_t column,
                                     float m, float total, float sum) {
  float weight;
  total = denominator(a, head, m, total, weight);
  put_as(a, b * a.out_stride[0] + head * a.out_stride[1] + column,
         total == 0 ? 0.f * sum : sum * weight / total);
  if (column == 0)
    a.lse[b * a.lse_stride[0] + head * a.lse_stride[1]] = total == 0 ? -INFINITY : m + logf(total);
}

// A split's sums in the workspace: value_dim of them, then the maximum and the total.
__device__ inline float* partial_of(const DecodeArgs& a, int64_t b, int64_t head, int64_t split) {
  const int64_t splits = most_splits(a.capacity, a.left);
  return a.workspace + ((b * a.heads + head) * splits + split) * (a.value_dim + 2);
}

// The warps' sums, in shared memory, joined in order: m and total are [warp][kHeads], sums
// [warp][kHeads][pitch]. The result is the row's, or the split's for decode_kernel_join.
template <int kHeads>
__device__ inline void hand_over(const DecodeArgs& a, const Part& p, const float* m, float* total,
                                 const float* sums, int pitch) {
  HEXAD_SHARED(float, top, [kHeads]);
  HEXAD_SHARED(float, whole, [kHeads]);
  HEXAD_SHARED(float, weight, [kDecodeWarps][kHeads]);
  __syncthreads();
  const int i = int(threadIdx.x);
  if (i < kHeads) {
    float most = m[i];
    for (int w = 1; w < kDecodeWarps; ++w) most = fmaxf(most, m[w * kHeads + i]);
    const float base = most == -INFINITY ? 0.f : most;
    float sum = 0.f;
    for (int w = 0; w < kDecodeWarps; ++w) {
      weight[w][i] = expf(m[w * kHeads + i] - base);
      sum = fmaf(total[w * kHeads + i], weight[w][i], sum);
    }
    top[i] = most;
    whole[i] = sum;
  }
  __syncthreads();
  for (int at = i; at < p.heads * int(a.value_dim); at += kDecodeThreads) {
    const int h = at / int(a.value_dim), column = at % int(a.value_dim);
    float sum = 0.f;
    for (int w = 0; w < kDecodeWarps; ++w)
      sum = fmaf(sums[(w * kHeads + h) * pitch + column], weight[w][h], sum);
    if (p.splits <= 1) {
      finish_column(a, p.b, p.head + h, column, top[h], whole[h], sum);
      continue;
    }
    float* to = partial_of(a, p.b, p.head + h, p.split);
    to[column] = sum;
    if (column == 0) to[a.value_dim] = top[h], to[a.value_dim + 1] = whole[h];
  }
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
