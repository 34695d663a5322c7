// A warp takes a row of k or v to its place: turned where cos is given, rounded to bytes where the
// cache has a scale for it.
#include "cuda/float8.cuh"
#include "cuda/rotate.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

// f(where in the row, how many are there, the floats) for a lane's 16-byte pieces of a row.
template <class T, class F>
__device__ inline void each_piece(const T* x, int64_t n, const float* cos, const float* sin,
                                  bool interleaved, bool aligned, const F& f) {
  constexpr int64_t kStep = 32 * kWide<T>;
  const int64_t lane = threadIdx.x % 32;
  float y[2][kWide<T>];
  if (cos) {
    for (int64_t pair = lane * kWide<T>; pair < n / 2; pair += kStep) {
      const Runs runs = rotated(x, cos, sin, pair, n, interleaved, aligned, y);
      f(runs.at[0], runs.count[0], y[0]);
      f(runs.at[1], runs.count[1], y[1]);
    }
  } else {
    for (int64_t i = lane * kWide<T>; i < n; i += kStep) {
      load_wide(x + i, n - i, aligned, y[0]);
      f(i, n - i, y[0]);
    }
  }
}

template <class T>
__device__ inline void put_row(const T* x, int64_t n, T* to, float*, int, const float* cos,
                               const float* sin, bool interleaved, bool aligned) {
  each_piece(x, n, cos, sin, interleaved, aligned,
             [&](int64_t at, int64_t count, const float (&y)[kWide<T>]) {
               store_wide(to + at, count, aligned, y);
             });
}

// A number of the cache's range, rounded to it.
__device__ inline void round_to(int8_t* to, float x, int) {
  *to = int8_t(rintf(x));
}
__device__ inline void round_to(Float8* to, float x, int kind) {
  *to = to_float8(x, kind);
}

// kind: of float8, 0 of int8.
template <class T, class C>
__device__ inline void put_row(const T* x, int64_t n, C* to, float* scale, int kind,
                               const float* cos, const float* sin, bool interleaved, bool aligned) {
  const float largest = kind == 0 ? 127.f : kind == 1 ? 448.f : 57344.f;
  float most = 0.f;
  bool numbers = true;
  each_piece(x, n, cos, sin, interleaved, aligned,
             [&](int64_t, int64_t count, const float (&y)[kWide<T>]) {
               for (int i = 0; i < kWide<T>; ++i) {
                 if (i >= count) break;
                 most = fmaxf(most, fabsf(y[i]));
                 numbers &= y[i] == y[i];
               }
             });
  most = warp_max(most);
  const float size = __all_sync(kFullWarp, numbers) ? most / largest : NAN;
  const float step = size > 0 ? size : 1.f;
  if (threadIdx.x % 32 == 0) *scale = size;
  each_piece(x, n, cos, sin, interleaved, aligned,
             [&](int64_t at, int64_t count, const float (&y)[kWide<T>]) {
               for (int i = 0; i < kWide<T>; ++i) {
                 if (i >= count) break;
                 const float v = y[i] / step;
                 round_to(to + at + i, v == v ? fmaxf(-largest, fminf(largest, v)) : 0.f, kind);
               }
             });
}

// T: new rows, C: the cache.
template <class T, class C>
__global__ void __launch_bounds__(kThreads, 4)
    append_kv_kernel(AppendKvArgs a, bool k_aligned, bool v_aligned) {
  const int64_t t = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t s = t % a.rows, h = t / a.rows % a.kv_heads, b = t / a.rows / a.kv_heads % a.batch;
  if (t >= 2 * a.batch * a.kv_heads * a.rows) return;
  const bool value = t >= a.batch * a.kv_heads * a.rows;
  const int64_t position = a.lengths[b * a.lengths_stride] + s;
  int64_t page = b, slot = position;
  if (a.table) {
    page = a.table[b * a.table_stride[0] + position / a.page * a.table_stride[1]];
    slot = position % a.page;
  }
  const auto place = [&](const int64_t* step, int64_t i, int64_t j) {
    return i * step[0] + h * step[1] + j * step[2];
  };
  if (value)
    put_row(static_cast<const T*>(a.v) + place(a.v_stride, b, s), a.value_dim,
            static_cast<C*>(a.v_cache) + place(a.v_cache_stride, page, slot),
            a.v_scale + place(a.v_scale_stride, page, slot), a.float8, nullptr, nullptr, false,
            v_aligned);
  else
    put_row(static_cast<const T*>(a.k) + place(a.k_stride, b, s), a.head_dim,
            static_cast<C*>(a.k_cache) + place(a.k_cache_stride, page, slot),
            a.k_scale + place(a.k_scale_stride, page, slot), a.float8,
            a.cos ? static_cast<const float*>(a.cos) + position * a.cos_stride : nullptr,
            a.cos ? static_cast<const float*>(a.sin) + position * a.sin_stride : nullptr,
            a.interleaved, k_aligned);
}

template <class T, class C>
void run(const AppendKvArgs& a, hexad_stream stream) {
  const auto fits = [](const void* from, const int64_t (&step)[3], const void* to,
                       const int64_t (&cache_step)[3]) {
    return aligned_16(from, step, sizeof(T)) &&
           (sizeof(C) == 1 || aligned_16(to, cache_step, sizeof(C)));
  };
  const bool halves = a.interleaved || !a.cos || a.head_dim / 2 % kWide<T> == 0;
  const int64_t rows = 2 * a.batch * a.kv_heads * a.rows;
  launch("append_kv", append_kv_kernel<T, C>, blocks("append_kv", (rows + kWarps - 1) / kWarps),
         kThreads, 0, stream, a, halves && fits(a.k, a.k_stride, a.k_cache, a.k_cache_stride),
         fits(a.v, a.v_stride, a.v_cache, a.v_cache_stride));
}

template <class T>
void run(const AppendKvArgs& a, hexad_stream stream) {
  a.float8    ? run<T, Float8>(a, stream)
  : a.k_scale ? run<T, int8_t>(a, stream)
              : run<T, T>(a, stream);
}

}  // namespace

void append_kv(const AppendKvArgs& args, hexad_stream stream) {
  if (args.batch * args.kv_heads * args.rows == 0) return;
  args.bf16  ? run<bf16>(args, stream)
  : args.f16 ? run<f16>(args, stream)
             : run<float>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
