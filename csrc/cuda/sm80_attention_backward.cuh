// Attention's gradients on the tensor cores of sm_80. A warp owns 16 rows of the side that its
// block owns (queries or keys) and keeps scores, weights and gradients in registers; the other side
// comes by in tiles of 64. What is hidden beside what is seen is treated as in sm80_attention.cuh.
#pragma once

#include "cuda/attend_backward.cuh"
#include "cuda/fragments.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kOwned = 64, kBackwardThreads = 128;  // rows of a block's own side; 16 a warp

// The block's own two tiles, then two stages of two tiles of the other side.
template <int kDim>
struct BackwardLayout {
  static constexpr int kSide = kDim <= 64 ? 64 : 32;  // rows of a tile of the other side
  static constexpr int kPitch = kPitchOf<kDim>, kOwn = kOwned * kPitch, kTile = kSide * kPitch;
  static constexpr size_t kShared = size_t(2 * kOwn + 4 * kTile) * 2;
};

// Scores and <grad_out, v> of a fragment become weights and ds; the bits of `seen` say which pairs
// see each other. With kKeyRows a fragment's rows are keys, its columns queries.
template <bool kKeyRows, int kN, class Statistics>
__device__ inline void pair_gradients(float (&s)[kN][4], float (&dp)[kN][4], unsigned& seen,
                                      const AttentionBackwardArgs& a, int b, int head, int row,
                                      int column, bool whole, Statistics statistics) {
  seen = 0;
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int own = row + e / 2 * 8, other = column + 8 * n + e % 2;
      const int i = kKeyRows ? other : own, j = kKeyRows ? own : other;
      const RowStatistics of_row = statistics(n, e);
      float bias = 0.f;
      const bool visible = (whole || sees_key(a, b, head, i, j, bias)) && of_row.lse != INFINITY;
      pair_gradient<true>(a, of_row, bias, s[n][e], dp[n][e]);
      if (!visible) s[n][e] = dp[n][e] = 0.f;
      seen |= unsigned(visible) << (4 * n + e);
    }
  }
}

// acc += P B, with care for what is not finite in B where asked.
template <class T, int kDim, int kN>
__device__ inline void gather(float (&acc)[1][kDim / 8][4], const float (&p)[1][kN][4],
                              unsigned seen, const T* tile, bool careful) {
  if (careful) {
    weigh<true, T, kDim>(acc, p, tile);
    add_special<T, kDim>(acc[0], p[0], seen, tile);
  } else {
    weigh<false, T, kDim>(acc, p, tile);
  }
}

template <int kN>
__device__ inline void clear(float (&x)[1][kN][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i) x[0][i / 4][i % 4] = 0.f;
}

// Whether every row of a tile of queries from i sees every key of a tile from j.
__device__ inline bool sees_whole(const AttentionBackwardArgs& a, int i, int rows, int j,
                                  int keys) {
  const int position = i + int(a.offset);
  return !a.mask && i + rows <= a.rows && j + keys <= a.keys &&
         !(a.left >= 0 && j < position + rows - 1 - a.left) &&
         !(a.right >= 0 && j + keys - 1 > position + a.right);
}
__device__ inline bool sees_none(const AttentionBackwardArgs& a, int i, int rows, int j, int keys) {
  const int position = i + int(a.offset);
  return i >= a.rows || j >= a.keys || (a.left >= 0 && j + keys - 1 < position - a.left) ||
         (a.right >= 0 && j > position + rows - 1 + a.right);
}

template <class T, int kDim>
__global__ void __launch_bounds__(kBackwardThreads, kDim > 128 ? 1 : 2)
    attention_backward_kernel_q(BackwardTask task) {
  using L = BackwardLayout<kDim>;
  constexpr int kSide = L::kSide;
  HEXAD_DYNAMIC_SHARED(T, queries);
  HEXAD_SHARED(int, any_spoilt, [1]);
  T* const grads = queries + L::kOwn;
  T* const tiles = queries + 2 * L::kOwn;  // keys, values of each stage
  const AttentionBackwardArgs& a = task.a;
  const int rows = int(a.rows), keys = int(a.keys), offset = int(a.offset);
  const unsigned blocks_a_head = unsigned(rows + kOwned - 1) / kOwned;
  const unsigned sequence = blockIdx.x / blocks_a_head;
  const int first = int(blocks_a_head - 1 - blockIdx.x % blocks_a_head) * kOwned;
  const int b = int(sequence / unsigned(a.heads)), head = int(sequence % unsigned(a.heads));
  const int kv_head = head / int(a.heads / a.kv_heads);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, t = lane % 4;
  const int own = first + 16 * warp;

  int begin, end;
  AttentionArgs window{};
  window.left = a.left, window.right = a.right;
  const int last = first + kOwned < rows ? first + kOwned - 1 : rows - 1;
  key_range(window, keys, first + offset, last + offset, kSide, begin, end);
  const auto fetch_tile = [&](int n, T* to) {
    fetch<T, kDim, kBackwardThreads>(to, kSide, keys - n, int(a.head_dim), task.vector, [&](int r) {
      return row_of<T>(a.k, a.k_stride, b, kv_head, n + r);
    });
    fetch<T, kDim, kBackwardThreads>(
        to + L::kTile, kSide, keys - n, int(a.value_dim), task.vector,
        [&](int r) { return row_of<T>(a.v, a.v_stride, b, kv_head, n + r); });
  };
  if (begin < end) {
    fetch<T, kDim, kBackwardThreads>(
        queries, kOwned, rows - first, int(a.head_dim), task.vector,
        [&](int r) { return row_of<T>(a.q, a.q_stride, b, head, first + r); });
    fetch<T, kDim, kBackwardThreads>(
        grads, kOwned, rows - first, int(a.value_dim), task.vector,
        [&](int r) { return row_of<T>(a.grad_out, a.grad_out_stride, b, head, first + r); });
  }
  RowStatistics statistics[2];
  for (int half = 0; half < 2; ++half)
    statistics[half] = row_statistics(a, b, head, own + lane / 4 + 8 * half);

  float acc[1][kDim / 8][4];
  for (bool careful = false;; careful = true) {
    clear(acc);
    if (begin < end) fetch_tile(begin, tiles), cp_async_commit();
    for (int n = begin; n < end; n += kSide) {
      T* const here = tiles + ((n - begin) / kSide % 2 ? 2 * L::kTile : 0);
      cp_async_wait<0>();
      __syncthreads();
      if (n + kSide < end) fetch_tile(n + kSide, here == tiles ? tiles + 2 * L::kTile : tiles);
      cp_async_commit();
      if (sees_none(a, own, 16, n, kSide)) continue;
      float s[1][kSide / 8][4], dp[1][kSide / 8][4];
      clear(s), clear(dp);
      scores<T, kDim>(s, queries + 16 * warp * L::kPitch, here);
      scores<T, kDim>(dp, grads + 16 * warp * L::kPitch, here + L::kTile);
      unsigned seen;
      pair_gradients<false>(s[0], dp[0], seen, a, b, head, own + lane / 4, n + 2 * t,
                            sees_whole(a, own, 16, n, kSide),
                            [&](int, int e) { return statistics[e / 2]; });
      gather<T, kDim>(acc, dp, seen, here, careful);
    }
    if (careful || begin >= end) break;
    if (threadIdx.x == 0) any_spoilt[0] = 0;
    __syncthreads();
    if (spoilt(acc)) any_spoilt[0] = 1;
    __syncthreads();
    if (!any_spoilt[0]) break;
  }
  if (own < rows)
    store_rows<T, kDim>(
        acc[0], 1.f, 1.f, queries + 16 * warp * L::kPitch, rows - own, int(a.head_dim),
        task.vector_grads, [&](int r) {
          return const_cast<T*>(row_of<T>(a.grad_q, a.grad_q_stride, b, head, own + r));
        });
}

// A block's keys, and the tiles of queries that come by: those of its group's heads, head by head.
// In shared memory, since the registers are full.
struct KeyBlock {
  int b, kv_head, head;  // head: the first of the group
  int first;             // key
  int begin, tiles;      // of queries; tiles of each head
  int steps;
};

__device__ inline void place_keys(const AttentionBackwardArgs& a, int side, KeyBlock& p) {
  const int keys = int(a.keys), group = int(a.heads / a.kv_heads);
  const unsigned blocks_a_head = unsigned(keys + kOwned - 1) / kOwned;
  const unsigned sequence = blockIdx.x / blocks_a_head;
  p.first = int(blockIdx.x % blocks_a_head) * kOwned;
  p.b = int(sequence / unsigned(a.kv_heads)), p.kv_head = int(sequence % unsigned(a.kv_heads));
  p.head = p.kv_head * group;
  int end;
  row_range(a, p.first, p.first + kOwned < keys ? p.first + kOwned - 1 : keys - 1, side, p.begin,
            end);
  p.tiles = p.begin < end ? (end - p.begin + side - 1) / side : 0;
  p.steps = p.tiles * group;
}

// kKeys, kValues: whether it makes grad_k, grad_v. Wide heads have the registers for one of them.
template <class T, int kDim, bool kKeys, bool kValues>
__global__ void __launch_bounds__(kBackwardThreads, kDim > 128 ? 1 : 2)
    attention_backward_kernel_kv(BackwardTask task) {
  using L = BackwardLayout<kDim>;
  constexpr int kSide = L::kSide;
  HEXAD_DYNAMIC_SHARED(T, keys);
  HEXAD_SHARED(int, any_spoilt, [1]);
  HEXAD_SHARED(RowStatistics, statistics, [2][L::kSide]);
  T* const values = keys + L::kOwn;
  T* const tiles = keys + 2 * L::kOwn;  // queries, grad_out of each stage
  const AttentionBackwardArgs& a = task.a;
  HEXAD_SHARED(KeyBlock, place, [1]);
  if (threadIdx.x == 0) place_keys(a, kSide, place[0]);
  __syncthreads();
  const KeyBlock& p = place[0];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, t = lane % 4;

  const auto fetch_tile = [&](int step, int stage) {
    const int head = p.head + step / p.tiles;
    const int n = p.begin + step % p.tiles * kSide;
    T* const to = tiles + stage * 2 * L::kTile;
    fetch<T, kDim, kBackwardThreads>(
        to, kSide, int(a.rows) - n, int(a.head_dim), task.vector,
        [&](int r) { return row_of<T>(a.q, a.q_stride, p.b, head, n + r); });
    fetch<T, kDim, kBackwardThreads>(
        to + L::kTile, kSide, int(a.rows) - n, int(a.value_dim), task.vector,
        [&](int r) { return row_of<T>(a.grad_out, a.grad_out_stride, p.b, head, n + r); });
    if (int(threadIdx.x) < kSide)
      statistics[stage][threadIdx.x] = row_statistics(a, p.b, head, n + int(threadIdx.x));
    cp_async_commit();
  };
  if (p.steps) {
    fetch<T, kDim, kBackwardThreads>(
        keys, kOwned, int(a.keys) - p.first, int(a.head_dim), task.vector,
        [&](int r) { return row_of<T>(a.k, a.k_stride, p.b, p.kv_head, p.first + r); });
    fetch<T, kDim, kBackwardThreads>(
        values, kOwned, int(a.keys) - p.first, int(a.value_dim), task.vector,
        [&](int r) { return row_of<T>(a.v, a.v_stride, p.b, p.kv_head, p.first + r); });
  }

  float acc_k[1][kKeys ? kDim / 8 : 1][4], acc_v[1][kValues ? kDim / 8 : 1][4];
  for (bool careful = false;; careful = true) {
    clear(acc_k), clear(acc_v);
    if (p.steps) fetch_tile(0, 0);
    for (int step = 0; step < p.steps; ++step) {
      const int stage = step % 2;
      cp_async_wait<0>();
      __syncthreads();
      if (step + 1 < p.steps) fetch_tile(step + 1, 1 - stage);
      const int head = p.head + step / p.tiles;
      const int n = p.begin + step % p.tiles * kSide;
      const int own = p.first + 16 * warp;
      if (sees_none(a, n, kSide, own, 16)) continue;
      const T* const queries = tiles + stage * 2 * L::kTile;
      float s[1][kSide / 8][4], dp[1][kSide / 8][4];
      clear(s), clear(dp);
      scores<T, kDim>(s, keys + 16 * warp * L::kPitch, queries);
      if constexpr (kKeys) scores<T, kDim>(dp, values + 16 * warp * L::kPitch, queries + L::kTile);
      unsigned seen;
      pair_gradients<true>(s[0], dp[0], seen, a, p.b, head, own + lane / 4, n + 2 * t,
                           sees_whole(a, n, kSide, own, 16), [&](int column, int e) {
                             return statistics[stage][8 * column + 2 * t + e % 2];
                           });
      if constexpr (kValues) gather<T, kDim>(acc_v, s, seen, queries + L::kTile, careful);
      if constexpr (kKeys) gather<T, kDim>(acc_k, dp, seen, queries, careful);
    }
    if (careful || !p.steps) break;
    if (threadIdx.x == 0) any_spoilt[0] = 0;
    __syncthreads();
    if (spoilt(acc_k) || spoilt(acc_v)) any_spoilt[0] = 1;
    __syncthreads();
    if (!any_spoilt[0]) break;
  }
  const int own = p.first + 16 * warp;
  if (own >= a.keys) return;
  if constexpr (kKeys)
    store_rows<T, kDim>(
        acc_k[0], 1.f, 1.f, keys + 16 * warp * L::kPitch, int(a.keys) - own, int(a.head_dim),
        task.vector_grads, [&](int r) {
          return const_cast<T*>(row_of<T>(a.grad_k, a.grad_k_stride, p.b, p.kv_head, own + r));
        });
  if constexpr (kValues)
    store_rows<T, kDim>(
        acc_v[0], 1.f, 1.f, values + 16 * warp * L::kPitch, int(a.keys) - own, int(a.value_dim),
        task.vector_grads, [&](int r) {
          return const_cast<T*>(row_of<T>(a.grad_v, a.grad_v_stride, p.b, p.kv_head, own + r));
        });
}

template <class T, int kDim>
void run_backward(const BackwardTask& task, hexad_stream stream) {
  constexpr const char* kOp = "attention_backward";
  constexpr size_t kShared = BackwardLayout<kDim>::kShared;
  const AttentionBackwardArgs& a = task.a;
  const unsigned count_q = blocks(kOp, (a.rows + kOwned - 1) / kOwned * a.batch * a.heads);
  const unsigned count_kv = blocks(kOp, (a.keys + kOwned - 1) / kOwned * a.batch * a.kv_heads);
  if (count_q)
    launch(kOp, attention_backward_kernel_q<T, kDim>, count_q, kBackwardThreads, kShared, stream,
           task);
  if (!count_kv) return;
  if (kDim <= 128) {
    launch(kOp, attention_backward_kernel_kv<T, kDim, true, kDim <= 128>, count_kv,
           kBackwardThreads, kShared, stream, task);
  } else {
    launch(kOp, attention_backward_kernel_kv<T, kDim, true, kDim <= 128>, count_kv,
           kBackwardThreads, kShared, stream, task);
    launch(kOp, attention_backward_kernel_kv<T, kDim, kDim <= 128, true>, count_kv,
           kBackwardThreads, kShared, stream, task);
  }
}

template <class T>
void backward_by_head_dim(const BackwardTask& task, hexad_stream stream) {
  const int64_t dim = task.a.head_dim > task.a.value_dim ? task.a.head_dim : task.a.value_dim;
  if (dim <= 64)
    run_backward<T, 64>(task, stream);
  else if (dim <= 96)
    run_backward<T, 96>(task, stream);
  else if (dim <= 128)
    run_backward<T, 128>(task, stream);
  else
    run_backward<T, 256>(task, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
