// Attention with a running softmax: a block of 4 warps per 16 query rows (and per chunk of value
// columns), keys in tiles of 32 counted from key 0, in float32 on the ordinary cores. A lane owns a
// key while scores are made and value columns while they are summed. A key that a row doesn't see
// is left out of the row's sum, so what it holds does not matter, and the row's bits depend on what
// it sees only.
#include "cuda/common.cuh"
#include "cuda/sm90_attention.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kRows = 4;  // of a warp
constexpr int kKeys = 32, kDims = 64;
constexpr int kPitch =
    kDims + 4;  // lanes that read 16 bytes of neighbouring keys meet no bank twice

struct alignas(16) Four {
  float x, y, z, w;
};

__device__ inline float dot(const float* a, const float* b, float sum) {
  const Four p = *reinterpret_cast<const Four*>(a), q = *reinterpret_cast<const Four*>(b);
  sum = fmaf(p.x, q.x, sum);
  sum = fmaf(p.y, q.y, sum);
  sum = fmaf(p.z, q.z, sum);
  return fmaf(p.w, q.w, sum);
}

// A tile of `rows` x `width` into shared memory; what lies outside the matrix becomes 0.
template <class T>
__device__ inline void load_tile(float* tile, int pitch, int rows, int width, const T* from,
                                 int64_t stride, int64_t rows_there, int64_t width_there) {
  for (int i = int(threadIdx.x); i < rows * width; i += kThreads) {
    const int r = i / width, c = i % width;
    tile[r * pitch + c] = r < rows_there && c < width_there ? to_float(from[r * stride + c]) : 0.f;
  }
}

// Whether row i sees key j; adds the mask to the score.
__device__ inline bool sees(const AttentionArgs& a, int64_t b, int64_t h, int64_t i, int64_t j,
                            float& s) {
  if (i >= a.rows || j >= a.keys) return false;
  const int64_t ahead = j - (i + a.offset);
  if ((a.left >= 0 && ahead < -a.left) || (a.right >= 0 && ahead > a.right)) return false;
  if (!a.mask) return true;
  const int64_t at =
      b * a.mask_stride[0] + h * a.mask_stride[1] + i * a.mask_stride[2] + j * a.mask_stride[3];
  if (a.mask_kind == 0) return static_cast<const uint8_t*>(a.mask)[at];
  const float bias = a.mask_kind == 1 ? static_cast<const float*>(a.mask)[at]
                                      : to_float(static_cast<const bf16*>(a.mask)[at]);
  s += bias;
  return bias != -INFINITY;
}

// Lanes hold columns lane, lane + 32, ... of a value chunk, kColumns of them.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 3) attention_kernel(AttentionArgs a) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int64_t tiles = (a.rows + kWarps * kRows - 1) / (kWarps * kRows);
  const int64_t sequence = blockIdx.x / tiles, first = blockIdx.x % tiles * kWarps * kRows;
  const int64_t b = sequence / a.heads, h = sequence % a.heads,
                kv_head = h / (a.heads / a.kv_heads);
  const int64_t first_column = int64_t(blockIdx.y) * 32 * kColumns;
  const T* q =
      static_cast<const T*>(a.q) + b * a.q_stride[0] + h * a.q_stride[1] + first * a.q_stride[2];
  const T* k = static_cast<const T*>(a.k) + b * a.k_stride[0] + kv_head * a.k_stride[1];
  const T* v =
      static_cast<const T*>(a.v) + b * a.v_stride[0] + kv_head * a.v_stride[1] + first_column;

  HEXAD_SHARED(float, queries, [kWarps * kRows * kPitch]);
  HEXAD_SHARED(float, keys, [kKeys * kPitch]);
  HEXAD_SHARED(float, values, [kKeys][32 * kColumns]);
  HEXAD_SHARED(float, weights, [kWarps * kRows][kKeys]);

  float m[kRows], total[kRows], acc[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    m[r] = -INFINITY;
    total[r] = 0.f;
    for (int c = 0; c < kColumns; ++c) acc[r][c] = 0.f;
  }

  int64_t begin = 0, end = a.keys;
  if (a.left >= 0 && first + a.offset > a.left) begin = (first + a.offset - a.left) / kKeys * kKeys;
  if (a.right >= 0) {
    const int64_t last = first + kWarps * kRows - 1 + a.offset + a.right;
    end = last + 1 < end ? last + 1 : end;
  }
  for (int64_t n = begin; n < end; n += kKeys) {
    float s[kRows] = {};
    for (int64_t d = 0; d < a.head_dim; d += kDims) {
      __syncthreads();
      if (n == begin || a.head_dim > kDims)
        load_tile(queries, kPitch, kWarps * kRows, kDims, q + d, a.q_stride[2], a.rows - first,
                  a.head_dim - d);
      load_tile(keys, kPitch, kKeys, kDims, k + n * a.k_stride[2] + d, a.k_stride[2], a.keys - n,
                a.head_dim - d);
      if (d == 0)
        load_tile(values[0], 32 * kColumns, kKeys, 32 * kColumns, v + n * a.v_stride[2],
                  a.v_stride[2], a.keys - n, a.value_dim - first_column);
      __syncthreads();
      for (int i = 0; i < kDims; i += 4)
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          s[r] = dot(queries + (warp * kRows + r) * kPitch + i, keys + lane * kPitch + i, s[r]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = warp * kRows + r;
      s[r] *= a.scale;
      if (a.softcap > 0) s[r] = a.softcap * tanhf(s[r] / a.softcap);
      const bool visible = sees(a, b, h, first + row, n + lane, s[r]);
      const unsigned seen = __ballot_sync(kFullWarp, visible);
      if (!seen) continue;
      const float m_new = fmaxf(m[r], warp_max(visible ? s[r] : -INFINITY));
      const float base = m_new == -INFINITY ? 0.f : m_new;
      const float p = visible ? expf(s[r] - base) : 0.f, before = expf(m[r] - base);
      m[r] = m_new;
      total[r] = total[r] * before + warp_sum(p);
      weights[row][lane] = p;
      __syncwarp();
      for (int c = 0; c < kColumns; ++c) acc[r][c] *= before;
      for (int j = 0; j < kKeys; ++j) {
        if (!(seen >> j & 1)) continue;
        const float weight = weights[row][j];
        for (int c = 0; c < kColumns; ++c)
          acc[r][c] = fmaf(weight, values[j][lane + 32 * c], acc[r][c]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + warp * kRows + r;
    if (row >= a.rows) break;
    const float divisor = total[r] == 0 ? 1.f : total[r];
    T* out = static_cast<T*>(a.out) + b * a.out_stride[0] + h * a.out_stride[1] +
             row * a.out_stride[2] + first_column;
    for (int c = 0; c < kColumns; ++c)
      if (first_column + lane + 32 * c < a.value_dim) put(out + lane + 32 * c, acc[r][c] / divisor);
    if (lane == 0 && blockIdx.y == 0)
      a.lse[b * a.lse_stride[0] + h * a.lse_stride[1] + row * a.lse_stride[2]] =
          total[r] == 0 ? -INFINITY : m[r] + logf(total[r]);
  }
}

template <int kColumns>
void run(const AttentionArgs& a, hexad_stream stream) {
  constexpr int64_t chunk = 32 * kColumns, block_rows = kWarps * kRows;
  const dim3 grid(blocks("attention", (a.rows + block_rows - 1) / block_rows * a.batch * a.heads),
                  unsigned(a.value_dim > chunk ? (a.value_dim + chunk - 1) / chunk : 1));
  launch("attention", a.bf16 ? attention_kernel<bf16, kColumns> : attention_kernel<float, kColumns>,
         grid, kThreads, 0, stream, a);
}

}  // namespace

void attention(const AttentionArgs& args, hexad_stream stream) {
  if (args.batch * args.heads * args.rows == 0 || sm90_attention(args, stream)) return;
  if (args.value_dim <= 64)
    run<2>(args, stream);
  else if (args.value_dim <= 128)
    run<4>(args, stream);
  else
    run<8>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
