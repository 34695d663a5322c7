// Attention with a running softmax on the ordinary cores, for float32 and for heads wider than the
// tensor cores' kernel takes: a block of 4 warps per 16 query rows (and per chunk of value
// columns), keys in tiles of 32 counted from key 0. A lane owns a key while scores are made and
// value columns while they are summed. A key that a row doesn't see is left out of the row's sum,
// so what it holds does not matter, and the row's bits depend on what it sees only.
#include "cuda/attend.cuh"

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

// Whether row i sees key j; adds slope and mask to the score.
__device__ inline bool sees(const AttentionArgs& a, const AttendPlace& p, int i, int j, float& s) {
  if (i >= p.rows || j >= p.keys) return false;
  const int ahead = j - (i + p.offset);
  if ((a.left >= 0 && ahead < -a.left) || (a.right >= 0 && ahead > a.right)) return false;
  if (a.slopes) s -= a.slopes[p.head] * float(ahead < 0 ? -ahead : ahead);
  if (!a.mask) return true;
  const int64_t at = int64_t(p.b) * a.mask_stride[0] + p.head * a.mask_stride[1] +
                     i * a.mask_stride[2] + j * a.mask_stride[3];
  if (a.mask_kind == 0) return static_cast<const uint8_t*>(a.mask)[at];
  const float bias = mask_bias(a, at);
  s += bias;
  return bias != -INFINITY;
}

// Lanes hold columns lane, lane + 32, ... of a value chunk, kColumns of them.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 3) plain_attention_kernel(AttendTask task) {
  const AttentionArgs& a = task.a;
  AttendPlace p;
  if (!place_block(task, kWarps * kRows, p)) return;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int kv_head = p.head / int(a.heads / a.kv_heads);
  const int first_column = int(blockIdx.y) * 32 * kColumns;
  const T* q = row_of<T>(a.q, a.q_stride, p.b, p.head, p.q_start + p.first);
  const T* k = row_of<T>(a.k, a.k_stride, p.b, kv_head, p.k_start);
  const T* v = row_of<T>(a.v, a.v_stride, p.b, kv_head, p.k_start) + first_column;

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

  const int head_dim = int(a.head_dim);
  int begin, end;
  key_range(a, p.keys, p.first + p.offset, p.first + kWarps * kRows - 1 + p.offset, kKeys, begin,
            end);
  for (int n = begin; n < end; n += kKeys) {
    float s[kRows] = {};
    for (int d = 0; d < head_dim; d += kDims) {
      __syncthreads();
      if (n == begin || head_dim > kDims)
        load_tile(queries, kPitch, kWarps * kRows, kDims, q + d, a.q_stride[2], p.rows - p.first,
                  head_dim - d);
      load_tile(keys, kPitch, kKeys, kDims, k + n * a.k_stride[2] + d, a.k_stride[2], p.keys - n,
                head_dim - d);
      if (d == 0)
        load_tile(values[0], 32 * kColumns, kKeys, 32 * kColumns, v + n * a.v_stride[2],
                  a.v_stride[2], p.keys - n, a.value_dim - first_column);
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
      const bool visible = sees(a, p, p.first + row, n + lane, s[r]);
      const unsigned seen = __ballot_sync(kFullWarp, visible);
      if (!seen) continue;
      const float m_new = fmaxf(m[r], warp_max(visible ? s[r] : -INFINITY));
      const float base = m_new == -INFINITY ? 0.f : m_new;
      const float weight = visible ? expf(s[r] - base) : 0.f, before = expf(m[r] - base);
      m[r] = m_new;
      total[r] = total[r] * before + warp_sum(weight);
      weights[row][lane] = weight;
      __syncwarp();
      for (int c = 0; c < kColumns; ++c) acc[r][c] *= before;
      for (int j = 0; j < kKeys; ++j) {
        if (!(seen >> j & 1)) continue;
        const float w = weights[row][j];
        for (int c = 0; c < kColumns; ++c) acc[r][c] = fmaf(w, values[j][lane + 32 * c], acc[r][c]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int i = p.first + warp * kRows + r;
    if (i >= p.rows) break;
    float shrink = 1.f;
    if (a.sinks) {
      const float sink = a.sinks[p.head], m_new = fmaxf(m[r], sink);
      if (m_new != -INFINITY) {
        shrink = expf(m[r] - m_new);
        total[r] = total[r] * shrink + expf(sink - m_new);
        m[r] = m_new;
      }
    }
    const float divisor = total[r] == 0 ? 1.f : total[r];
    T* out =
        const_cast<T*>(row_of<T>(a.out, a.out_stride, p.b, p.head, p.q_start + i)) + first_column;
    for (int c = 0; c < kColumns; ++c)
      if (first_column + lane + 32 * c < a.value_dim)
        put(out + lane + 32 * c, acc[r][c] * shrink / divisor);
    if (lane == 0 && blockIdx.y == 0)
      a.lse[int64_t(p.b) * a.lse_stride[0] + p.head * a.lse_stride[1] +
            (p.q_start + i) * a.lse_stride[2]] = total[r] == 0 ? -INFINITY : m[r] + logf(total[r]);
  }
}

template <int kColumns>
void run(const char* op, const AttendTask& task, hexad_stream stream) {
  constexpr int64_t chunk = 32 * kColumns;
  const AttentionArgs& a = task.a;
  const dim3 grid(blocks(op, attend_blocks(task, kWarps * kRows)),
                  unsigned(a.value_dim > chunk ? (a.value_dim + chunk - 1) / chunk : 1));
  if (grid.x)
    launch(op,
           a.bf16  ? plain_attention_kernel<bf16, kColumns>
           : a.f16 ? plain_attention_kernel<f16, kColumns>
                   : plain_attention_kernel<float, kColumns>,
           grid, kThreads, 0, stream, task);
}

}  // namespace

void plain_attend(const char* op, const AttendTask& task, hexad_stream stream) {
  if (task.a.value_dim <= 64)
    run<2>(op, task, stream);
  else if (task.a.value_dim <= 128)
    run<4>(op, task, stream);
  else
    run<8>(op, task, stream);
}

}  // namespace cuda
}  // namespace hexad
