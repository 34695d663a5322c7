// One query per sequence: a block per (sequence, head, chunk of value columns). Its warps take
// tiles of 32 keys in turn, each with its own running softmax; the warps are joined in order at the
// end, so a row's bits depend on its own length only.
#include "cuda/common.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kKeys = 32;

// Lanes hold columns lane, lane + 32, ... of a value chunk, kColumns of them.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 4) decode_kernel(DecodeArgs a) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
  const int64_t kv_head = h / (a.heads / a.kv_heads);
  const int64_t first_column = int64_t(blockIdx.y) * 32 * kColumns;
  const T* q = static_cast<const T*>(a.q) + b * a.q_stride[0] + h * a.q_stride[1];
  const T* k = static_cast<const T*>(a.k) + kv_head * a.k_stride[1];
  const T* v = static_cast<const T*>(a.v) + kv_head * a.v_stride[1] + first_column;
  const int64_t columns = a.value_dim - first_column;

  HEXAD_DYNAMIC_SHARED(float, query);
  for (int64_t d = threadIdx.x; d < a.head_dim; d += kThreads) query[d] = to_float(q[d]);
  __syncthreads();

  const int64_t length = a.lengths[b * a.lengths_stride];
  const int64_t start = a.left < 0 || a.left >= length ? 0 : length - 1 - a.left;
  float m = -INFINITY, total = 0.f, acc[kColumns] = {};
  for (int64_t n = start / kKeys * kKeys + warp * kKeys; n < length; n += kThreads) {
    // Each lane finds the place of one key, then the warp reads key after key together.
    const int64_t mine = n + lane;
    const bool here = mine >= start && mine < length;
    int64_t page = b;
    if (a.table && here) page = a.table[b * a.table_stride[0] + mine / a.page * a.table_stride[1]];
    const int64_t slot = a.table ? mine % a.page : mine;
    const int64_t key_at = page * a.k_stride[0] + slot * a.k_stride[2];
    const int64_t value_at = page * a.v_stride[0] + slot * a.v_stride[2];
    const int begin = start > n ? int(start - n) : 0;
    const int end = length - n < kKeys ? int(length - n) : kKeys;
    float s = -INFINITY;
    for (int j = begin; j < end; ++j) {
      const T* key = k + __shfl_sync(kFullWarp, key_at, j);
      float sum = 0.f;
      for (int64_t d = lane; d < a.head_dim; d += 32) sum = fmaf(query[d], to_float(key[d]), sum);
      sum = warp_sum(sum) * a.scale;
      if (a.softcap > 0) sum = a.softcap * tanhf(sum / a.softcap);
      if (lane == j) s = sum;
    }
    const float m_new = fmaxf(m, warp_max(s));
    const float base = m_new == -INFINITY ? 0.f : m_new;
    const float p = here ? expf(s - base) : 0.f, before = expf(m - base);
    total = total * before + warp_sum(p);
    m = m_new;
    for (int c = 0; c < kColumns; ++c) acc[c] *= before;
    for (int j = begin; j < end; ++j) {
      const float weight = __shfl_sync(kFullWarp, p, j);
      const T* value = v + __shfl_sync(kFullWarp, value_at, j);
      for (int c = 0; c < kColumns; ++c)
        if (lane + 32 * c < columns) acc[c] = fmaf(weight, to_float(value[lane + 32 * c]), acc[c]);
    }
  }

  HEXAD_SHARED(float, maxima, [kWarps]);
  HEXAD_SHARED(float, totals, [kWarps]);
  HEXAD_SHARED(float, sums, [kWarps][32 * kColumns]);
  if (lane == 0) {
    maxima[warp] = m;
    totals[warp] = total;
  }
  for (int c = 0; c < kColumns; ++c) sums[warp][lane + 32 * c] = acc[c];
  __syncthreads();
  m = maxima[0];
  for (int w = 1; w < kWarps; ++w) m = fmaxf(m, maxima[w]);
  const float base = m == -INFINITY ? 0.f : m;
  total = 0.f;
  for (int w = 0; w < kWarps; ++w) total = fmaf(totals[w], expf(maxima[w] - base), total);
  const float divisor = total == 0 ? 1.f : total;
  T* out = static_cast<T*>(a.out) + b * a.out_stride[0] + h * a.out_stride[1] + first_column;
  for (int c = int(threadIdx.x); c < 32 * kColumns && c < columns; c += kThreads) {
    float sum = 0.f;
    for (int w = 0; w < kWarps; ++w) sum = fmaf(sums[w][c], expf(maxima[w] - base), sum);
    put(out + c, sum / divisor);
  }
  if (threadIdx.x == 0 && blockIdx.y == 0)
    a.lse[b * a.lse_stride[0] + h * a.lse_stride[1]] = total == 0 ? -INFINITY : m + logf(total);
}

template <int kColumns>
void run(const DecodeArgs& a, hexad_stream stream) {
  constexpr int64_t chunk = 32 * kColumns;
  const dim3 grid(blocks("decode", a.batch * a.heads),
                  unsigned(a.value_dim > chunk ? (a.value_dim + chunk - 1) / chunk : 1));
  launch("decode", a.bf16 ? decode_kernel<bf16, kColumns> : decode_kernel<float, kColumns>, grid,
         kThreads, size_t(a.head_dim) * sizeof(float), stream, a);
}

}  // namespace

void decode(const DecodeArgs& args, hexad_stream stream) {
  if (args.batch * args.heads == 0) return;
  if (args.value_dim <= 64)
    run<2>(args, stream);
  else if (args.value_dim <= 128)
    run<4>(args, stream);
  else
    run<8>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
