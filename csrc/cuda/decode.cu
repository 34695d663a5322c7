// One query per sequence. A block has up to 8 query heads of a key head, so that these read its
// cache together, and one split of a row's keys: splits have fixed borders, a row meets as many as
// its length needs, and a block beyond them leaves at once. A row of one split is finished by its
// block; the splits of longer ones are joined in order by a second launch. So a row's bits depend
// on its own length and window only. (Flash-Decoding, Dao et al. 2023.)
#include "cuda/decode_float.cuh"
#include "cuda/decode_mma.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kJoinThreads = 256, kJoinWarps = kJoinThreads / 32;

// A block per query head of a row: its warps take the splits in turn.
__global__ void __launch_bounds__(kJoinThreads) decode_kernel_join(DecodeArgs a) {
  const int64_t b = blockIdx.x / a.heads, head = blockIdx.x % a.heads;
  int64_t length = a.lengths[b * a.lengths_stride];
  if (length > a.capacity) length = a.capacity;
  const int64_t start = a.left < 0 || a.left >= length ? 0 : length - 1 - a.left;
  const int splits = length > 0 ? int(split_of(length - 1) - split_of(start) + 1) : 0;
  if (splits <= 1) return;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const float* const parts = partial_of(a, b, head, 0);
  const int64_t pitch = a.value_dim + 2;

  float m = -INFINITY;
  for (int i = lane; i < splits; i += 32) m = fmaxf(m, parts[i * pitch + a.value_dim]);
  m = warp_max(m);
  const float base = m == -INFINITY ? 0.f : m;
  float total = 0.f;
  for (int i = lane; i < splits; i += 32)
    total = fmaf(parts[i * pitch + a.value_dim + 1], expf(parts[i * pitch + a.value_dim] - base),
                 total);
  total = warp_sum(total);

  HEXAD_SHARED(float, sums, [kJoinWarps][32]);
  for (int64_t first = 0; first < a.value_dim; first += 32) {
    const int64_t column = first + lane;
    float sum = 0.f;
    if (column < a.value_dim) {
#pragma unroll 8
      for (int i = warp; i < splits; i += kJoinWarps)
        sum = fmaf(parts[i * pitch + column], expf(parts[i * pitch + a.value_dim] - base), sum);
    }
    __syncthreads();
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < a.value_dim) {
      for (int w = 1; w < kJoinWarps; ++w) sum += sums[w][lane];
      finish_column(a, b, head, column, m, total, sum);
    }
  }
}

// Whether each row of a cache starts at a multiple of `bytes`.
bool starts_at(const void* at, const int64_t* stride, int64_t size, int64_t bytes) {
  int64_t all = int64_t(reinterpret_cast<uintptr_t>(at));
  for (int i = 0; i < 3; ++i) all |= stride[i] * size;
  return all % bytes == 0;
}

template <class C>
bool aligned(const DecodeArgs& a, int64_t bytes) {
  return starts_at(a.k, a.k_stride, sizeof(C), bytes) &&
         starts_at(a.v, a.v_stride, sizeof(C), bytes);
}

unsigned grid_of(const DecodeArgs& a, int64_t team) {
  const int64_t teams = (a.heads / a.kv_heads + team - 1) / team;
  return blocks("decode", most_splits(a.capacity, a.left) * a.batch * a.kv_heads * teams);
}

template <class T, class C, int kDim>
void run_mma(const DecodeArgs& a, hexad_stream stream) {
  launch("decode", decode_kernel<T, C, kDim>, grid_of(a, kTeam), kDecodeThreads,
         Ring<C, kDim>::kShared, stream, a, aligned<C>(a, 8 * sizeof(C)));
}

template <class T, class C>
void run_mma(const DecodeArgs& a, hexad_stream stream) {
  const int64_t dim = a.head_dim > a.value_dim ? a.head_dim : a.value_dim;
  if (dim <= 64) return run_mma<T, C, 64>(a, stream);
  if (dim <= 128) return run_mma<T, C, 128>(a, stream);
  run_mma<T, C, 256>(a, stream);
}

template <class C>
void run_float(const DecodeArgs& a, hexad_stream stream) {
  const bool wide = a.head_dim > 128 || a.value_dim > 128;
  launch("decode", wide ? decode_kernel_float<C, 2> : decode_kernel_float<C, 1>,
         grid_of(a, kFloatTeam), kDecodeThreads, 0, stream, a, aligned<C>(a, 4 * sizeof(C)));
}

}  // namespace

void decode(const DecodeArgs& given, hexad_stream stream) {
  DecodeArgs args = given;
  args.page = args.page < INT32_MAX ? args.page : INT32_MAX;
  if (args.batch * args.heads == 0) return;
  if (args.head_dim > kMostDecodeDim || args.value_dim > kMostDecodeDim)
    fail(HEXAD_UNSUPPORTED, "decode: head dimension over %d on CUDA", int(kMostDecodeDim));
  if (args.bf16)
    args.float8 ? run_mma<bf16, Float8>(args, stream)
    : args.int8 ? run_mma<bf16, int8_t>(args, stream)
                : run_mma<bf16, bf16>(args, stream);
  else if (args.f16)
    args.float8 ? run_mma<f16, Float8>(args, stream)
    : args.int8 ? run_mma<f16, int8_t>(args, stream)
                : run_mma<f16, f16>(args, stream);
  else
    args.float8 ? run_float<Float8>(args, stream)
    : args.int8 ? run_float<int8_t>(args, stream)
                : run_float<float>(args, stream);
  if (most_splits(args.capacity, args.left) > 1)
    launch("decode", decode_kernel_join, blocks("decode", args.batch * args.heads), kJoinThreads, 0,
           stream, args);
}

}  // namespace cuda
}  // namespace hexad
