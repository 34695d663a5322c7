// Attention's gradients in float32 on the ordinary cores: a block owns 16 queries or 16 keys, 4 a
// warp; the other side comes by in tiles of 32, a lane each while weights are made, and a lane owns
// columns while gradients are summed. A hidden pair is left out of the sums.
#include "cuda/attend_backward.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 4, kOwned = kWarps * kRows, kOthers = 32;

// 16 bytes at neighbouring rows lie in different banks; a tile's width is a multiple of 4.
__host__ __device__ constexpr int padded(int width) {
  return (width + 3) / 4 * 4 + (((width + 3) / 4) % 2 ? 0 : 4);
}

__device__ inline void load_tile(float* tile, int pitch, int rows, int there, int width,
                                 const float* from, int64_t stride) {
  for (int i = int(threadIdx.x); i < rows * pitch; i += kThreads) {
    const int r = i / pitch, c = i % pitch;
    tile[i] = r < there && c < width ? from[r * stride + c] : 0.f;
  }
}

struct alignas(16) Four {
  float x, y, z, w;
};

// Sixteen chains: what a row rounds off stays below what a matrix product of the same numbers does.
__device__ inline float dot(const float* a, const float* b, int width) {
  float sums[16] = {};
  for (int c = 0; c < width; c += 16)
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      if (c + i >= width) break;
      const Four p = *reinterpret_cast<const Four*>(a + c + i);
      const Four q = *reinterpret_cast<const Four*>(b + c + i);
      sums[i] = fmaf(p.x, q.x, sums[i]);
      sums[i + 1] = fmaf(p.y, q.y, sums[i + 1]);
      sums[i + 2] = fmaf(p.z, q.z, sums[i + 2]);
      sums[i + 3] = fmaf(p.w, q.w, sums[i + 3]);
    }
  // Written out: a loop over the halves would keep the sums in memory.
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i] += sums[i + 8];
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += sums[i + 4];
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

template <int kColumns>
__device__ inline void put_row(float* to, const float (&acc)[kColumns], int width) {
  for (int c = 0; c < kColumns; ++c) {
    const int column = int(threadIdx.x) % 32 + 32 * c;
    if (column < width) to[column] = acc[c];
  }
}

// kKeyRows: the block owns keys. Lanes hold columns lane, lane + 32, ... of the gradients.
template <bool kKeyRows, int kColumns>
__global__ void __launch_bounds__(kThreads, kColumns > 4 ? 2 : 3)
    plain_attention_backward_kernel(BackwardTask task) {
  const AttentionBackwardArgs& a = task.a;
  const int group = int(a.heads / a.kv_heads), dim = int(a.head_dim), value_dim = int(a.value_dim);
  const int owned = int(kKeyRows ? a.keys : a.rows), heads = int(kKeyRows ? a.kv_heads : a.heads);
  const int tiles = (owned + kOwned - 1) / kOwned;
  const int sequence = int(blockIdx.x / unsigned(tiles));
  const int first = int(blockIdx.x % unsigned(tiles)) * kOwned;
  const int b = sequence / heads, own_head = sequence % heads;
  const int kv_head = kKeyRows ? own_head : own_head / group;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, mine = warp * kRows;
  const int pitch = padded(dim), value_pitch = padded(value_dim);
  const int inner = (dim + 3) / 4 * 4, value_inner = (value_dim + 3) / 4 * 4;

  HEXAD_DYNAMIC_SHARED(float, own_1);  // queries and grad_out, or keys and values
  float* const own_2 = own_1 + kOwned * pitch;
  float* const other_1 = own_2 + kOwned * value_pitch;
  float* const other_2 = other_1 + kOthers * pitch;
  HEXAD_SHARED(float, weights, [2][kOwned][kOthers]);

  const auto load_side = [&](bool key_side, int head, int n, int rows, float* one, float* two) {
    if (key_side) {
      load_tile(one, pitch, rows, int(a.keys) - n, dim, row_of<float>(a.k, a.k_stride, b, head, n),
                a.k_stride[2]);
      load_tile(two, value_pitch, rows, int(a.keys) - n, value_dim,
                row_of<float>(a.v, a.v_stride, b, head, n), a.v_stride[2]);
    } else {
      load_tile(one, pitch, rows, int(a.rows) - n, dim, row_of<float>(a.q, a.q_stride, b, head, n),
                a.q_stride[2]);
      load_tile(two, value_pitch, rows, int(a.rows) - n, value_dim,
                row_of<float>(a.grad_out, a.grad_out_stride, b, head, n), a.grad_out_stride[2]);
    }
  };

  float acc_1[kRows][kColumns] = {}, acc_2[kKeyRows ? kRows : 1][kColumns] = {};
  int begin, end;
  const int last = (first + kOwned < owned ? first + kOwned : owned) - 1;
  if (kKeyRows) {
    row_range(a, first, last, kOthers, begin, end);
  } else {
    AttentionArgs window{};
    window.left = a.left, window.right = a.right;
    key_range(window, int(a.keys), first + int(a.offset), last + int(a.offset), kOthers, begin,
              end);
  }
  load_side(kKeyRows, own_head, first, kOwned, own_1, own_2);
  for (int g = 0; g < (kKeyRows ? group : 1); ++g) {
    const int head = kKeyRows ? kv_head * group + g : own_head;
    for (int n = begin; n < end; n += kOthers) {
      __syncthreads();
      load_side(!kKeyRows, kKeyRows ? head : kv_head, n, kOthers, other_1, other_2);
      __syncthreads();
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int own = first + mine + r, other = n + lane;
        const int i = kKeyRows ? other : own, j = kKeyRows ? own : other;
        const RowStatistics row = row_statistics(a, b, head, i);
        float p = dot(own_1 + (mine + r) * pitch, other_1 + lane * pitch, inner);
        float ds = dot(own_2 + (mine + r) * value_pitch, other_2 + lane * value_pitch, value_inner);
        float bias = 0.f;
        const bool visible = sees_key(a, b, head, i, j, bias) && row.lse != INFINITY;
        const unsigned seen = __ballot_sync(kFullWarp, visible);
        pair_gradient<false>(a, row, bias, p, ds);
        weights[0][mine + r][lane] = ds;
        weights[1][mine + r][lane] = p;
        __syncwarp();
        for (int k = 0; k < kOthers; ++k) {
          if (!(seen >> k & 1)) continue;
          const float x = weights[0][mine + r][k], y = weights[1][mine + r][k];
          for (int c = 0; c < kColumns; ++c) {
            const int column = lane + 32 * c;
            if (column < dim) acc_1[r][c] = fmaf(x, other_1[k * pitch + column], acc_1[r][c]);
            if (kKeyRows && column < value_dim)
              acc_2[r % (kKeyRows ? kRows : 1)][c] =
                  fmaf(y, other_2[k * value_pitch + column], acc_2[r % (kKeyRows ? kRows : 1)][c]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int own = first + mine + r;
    if (own >= owned) break;
    if (kKeyRows) {
      put_row(const_cast<float*>(row_of<float>(a.grad_k, a.grad_k_stride, b, kv_head, own)),
              acc_1[r], dim);
      put_row(const_cast<float*>(row_of<float>(a.grad_v, a.grad_v_stride, b, kv_head, own)),
              acc_2[r % (kKeyRows ? kRows : 1)], value_dim);
    } else {
      put_row(const_cast<float*>(row_of<float>(a.grad_q, a.grad_q_stride, b, own_head, own)),
              acc_1[r], dim);
    }
  }
}

template <int kColumns>
void run(const BackwardTask& task, hexad_stream stream) {
  constexpr const char* kOp = "attention_backward";
  const AttentionBackwardArgs& a = task.a;
  const size_t shared =
      size_t(kOwned + kOthers) * 4 * (padded(int(a.head_dim)) + padded(int(a.value_dim)));
  const unsigned count_q = blocks(kOp, (a.rows + kOwned - 1) / kOwned * a.batch * a.heads);
  const unsigned count_kv = blocks(kOp, (a.keys + kOwned - 1) / kOwned * a.batch * a.kv_heads);
  if (count_q)
    launch(kOp, plain_attention_backward_kernel<false, kColumns>, count_q, kThreads, shared, stream,
           task);
  if (count_kv)
    launch(kOp, plain_attention_backward_kernel<true, kColumns>, count_kv, kThreads, shared, stream,
           task);
}

}  // namespace

void plain_attend_backward(const BackwardTask& task, hexad_stream stream) {
  if (task.a.head_dim <= 128 && task.a.value_dim <= 128)
    run<4>(task, stream);
  else
    run<8>(task, stream);
}

}  // namespace cuda
}  // namespace hexad
