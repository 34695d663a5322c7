// Attention on Hopper, after FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608): one warp
// fetches tiles by bulk copies, two warpgroups take 64 query rows each and multiply with wgmma, the
// weights straight from registers. While one warpgroup works out exponentials, the other has the
// tensor cores; and a warpgroup's next scores are under way before its last values are summed.
// Blocks stay on their multiprocessor and take tiles in turn, the longest first.
//
// A hidden key must not matter, yet in a matrix product 0 * NaN does. A row whose sum is not finite
// leaves a mark in place of its log-sum, and a second launch of the same kernel, which does nothing
// where there is no mark, works those tiles out again with care: it clears what is not finite from
// the values in shared memory and adds it by hand where it is seen.
#include "cuda/hopper.cuh"
#include "cuda/sm90_attention.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kGroupRows = 64, kRows = 2 * kGroupRows, kStages = 2;
constexpr int kConsumers = 256, kThreads = 128 + kConsumers;

template <class T, int kDim>
struct Tiles {
  static constexpr int kKeys = kDim > 128 ? 64 : 128, kBlocks = kDim / kSwizzledColumns;
  using Queries = T[kBlocks][kRows][kSwizzledColumns];
  using Keys = T[kBlocks][kKeys][kSwizzledColumns];
};

template <class T, int kDim>
struct alignas(1024) Shared {
  typename Tiles<T, kDim>::Queries q;
  typename Tiles<T, kDim>::Keys k[kStages], v[kStages];
  uint64_t q_full, q_empty;
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

// What the careful launch needs besides.
template <class T, int kDim>
struct alignas(1024) CarefulShared : Shared<T, kDim> {
  float weights[kRows][Tiles<T, kDim>::kKeys];
  unsigned special[Tiles<T, kDim>::kKeys / 32];  // a bit per key that has a value not finite
};

#ifdef HEXAD_HOPPER

constexpr int kReleases = kConsumers / 32;  // arrivals that free a tile: one a warp
constexpr unsigned kMark = 0x7fc0a11d;      // a NaN that no arithmetic makes
constexpr float kLog2E = 1.4426950408889634f;

// A tile of query rows and the keys that its rows see.
struct Tile {
  int b, h, first, begin, end;
};

__device__ __forceinline__ int first_key(const AttentionArgs& a, int row) {
  const int64_t key = a.left < 0 ? 0 : row + a.offset - a.left;
  return int(key < 0 ? 0 : key > a.keys ? a.keys : key);
}
__device__ __forceinline__ int last_key(const AttentionArgs& a, int row) {
  const int64_t key = a.right < 0 ? a.keys - 1 : row + a.offset + a.right;
  return int(key < -1 ? -1 : key >= a.keys ? a.keys - 1 : key);
}

template <int kKeys>
__device__ __forceinline__ Tile tile_at(const AttentionArgs& a, int index) {
  const int sequences = int(a.batch * a.heads), rows = int(a.rows);
  const int tile = (rows + kRows - 1) / kRows - 1 - index / sequences, bh = index % sequences;
  Tile t;
  t.b = bh / int(a.heads);
  t.h = bh % int(a.heads);
  t.first = tile * kRows;
  t.begin = first_key(a, t.first) / kKeys * kKeys;
  t.end = last_key(a, min(t.first + kRows, rows) - 1) + 1;
  return t;
}

__device__ __forceinline__ float* lse_at(const AttentionArgs& a, const Tile& t, int row) {
  return a.lse + t.b * a.lse_stride[0] + t.h * a.lse_stride[1] + row * a.lse_stride[2];
}

// Whether a row of the tile bears the mark; by a whole warp.
__device__ inline bool marked(const AttentionArgs& a, const Tile& t) {
  bool found = false;
  for (int i = int(threadIdx.x) % 32; i < kRows && t.first + i < a.rows; i += 32)
    found |= *reinterpret_cast<const volatile unsigned*>(lse_at(a, t, t.first + i)) == kMark;
  return __any_sync(kFullWarp, found);
}

// How many tiles have gone through a ring of stages.
struct Ring {
  unsigned count = 0;
  __device__ __forceinline__ int stage() const { return int(count % kStages); }
  __device__ __forceinline__ int parity() const { return int(count / kStages % 2); }
  __device__ __forceinline__ void next() { ++count; }
};

template <class Rows>
__device__ __forceinline__ void fetch(Rows& to, const TensorMap& map, uint64_t* full, int first,
                                      int h, int b) {
  barrier_arrive_expect(full, int(sizeof(Rows)));
  constexpr int kBlocks = int(sizeof(Rows) / sizeof(to[0]));
  for (int i = 0; i < kBlocks; ++i)
    tensor_load(to[i], map, full, i * kSwizzledColumns, first, h, b);
}

// The producer: a warp, of which one lane starts the copies.
template <class T, int kDim, bool kCareful>
__device__ __forceinline__ void produce(const AttentionArgs& a, const TensorMap& q_map,
                                        const TensorMap& k_map, const TensorMap& v_map,
                                        Shared<T, kDim>& shared, int count) {
  constexpr int kKeys = Tiles<T, kDim>::kKeys;
  const int group = int(a.heads / a.kv_heads);
  int q_parity = 0;
  Ring ring;
  for (int index = int(blockIdx.x); index < count; index += int(gridDim.x)) {
    const Tile t = tile_at<kKeys>(a, index);
    if (t.begin >= t.end || (kCareful && !marked(a, t))) continue;
    if (threadIdx.x % 32 == 0) {
      barrier_wait(&shared.q_empty, q_parity ^ 1);
      fetch(shared.q, q_map, &shared.q_full, t.first, t.h, t.b);
    }
    q_parity ^= 1;
    for (int n = t.begin; n < t.end; n += kKeys, ring.next()) {
      if (threadIdx.x % 32) continue;
      const int s = ring.stage();
      barrier_wait(&shared.k_empty[s], ring.parity() ^ 1);
      fetch(shared.k[s], k_map, &shared.k_full[s], n, t.h / group, t.b);
      barrier_wait(&shared.v_empty[s], ring.parity() ^ 1);
      fetch(shared.v[s], v_map, &shared.v_full[s], n, t.h / group, t.b);
    }
    __syncwarp();
  }
}

__device__ __forceinline__ void release(uint64_t* empty) {
  if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

template <class T, int kDim, bool kCareful>
struct Consumer {
  static constexpr int kKeys = Tiles<T, kDim>::kKeys;
  using Memory = CarefulShared<T, kDim>;  // its own part is there for the careful launch only

  const AttentionArgs& a;
  Memory& shared;
  const int group, lane, local_row;  // warpgroup, and of its 64 rows this thread's first
  Tile tile;
  int low[2], high[2];   // the keys that this thread's rows see
  int all_from, all_to;  // the keys that all of the warpgroup's rows see
  float o[kDim / 2], s[kKeys / 2], m[2], total[2], before[2];
  unsigned p[kKeys / 16][4];

  __device__ __forceinline__ Consumer(const AttentionArgs& a, Memory& shared)
      : a(a),
        shared(shared),
        group(int(threadIdx.x) / 128 - 1),
        lane(int(threadIdx.x) % 32),
        local_row(int(threadIdx.x) % 128 / 32 * 16 + int(threadIdx.x) % 32 / 4) {}

  // From scores to exponents of e.
  __device__ __forceinline__ float factor() const { return a.softcap > 0 ? a.softcap : a.scale; }

  // Issues s = q k^T of a tile of keys.
  __device__ __forceinline__ void score(int stage) {
    const uint64_t q = swizzled_descriptor(shared_address(shared.q[0][group * kGroupRows]));
    const uint64_t k = swizzled_descriptor(shared_address(shared.k[stage]));
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i)
      Wgmma<T, kKeys, false>::run(s, q + uint64_t((i / 4 * kRows * 128 + i % 4 * 32) / 16),
                                  k + uint64_t((i / 4 * kKeys * 128 + i % 4 * 32) / 16), i > 0);
    wgmma_commit();
  }

  // Issues o += p v.
  __device__ __forceinline__ void add_values(int stage) {
    const uint64_t v = swizzled_descriptor(shared_address(shared.v[stage]), kKeys * 128);
    keep(o);
    keep(p);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
      Wgmma<T, kDim, true>::run(o, p[i], v + uint64_t(i * 16 * 128 / 16), true);
    wgmma_commit();
  }

  __device__ __forceinline__ void start(const Tile& t) {
    tile = t;
    const int rows = int(a.rows), first = t.first + group * kGroupRows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // A row past the last sees what the last does; it isn't stored.
      const int row = min(first + local_row + 8 * r, rows - 1);
      low[r] = first_key(a, row);
      high[r] = last_key(a, row);
      m[r] = -INFINITY;
      total[r] = 0.f;
    }
    all_from = first_key(a, min(first + kGroupRows, rows) - 1);
    all_to = last_key(a, min(first, rows - 1));
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] = 0.f;
  }

  // Turns the scores of keys n, n + 1, ... into weights relative to the new maximum.
  __device__ __forceinline__ void weigh(int n) {
    if (a.softcap > 0) {
      const float inner = a.scale / a.softcap;
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) s[i] = tanhf(s[i] * inner);
    }
    if (n < all_from || n + kKeys - 1 > all_to) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = n + i / 4 * 8 + lane % 4 * 2 + i % 2, r = i / 2 % 2;
        if (key < low[r] || key > high[r]) s[i] = -INFINITY;
      }
    }
    const float factor = this->factor() * kLog2E;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = m[r];
#pragma unroll
      for (int i = 2 * r; i < kKeys / 2; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
      const float base = top == -INFINITY ? 0.f : top * factor;
      before[r] = exp2_fast(fmaf(m[r], factor, -base));
      m[r] = top;
      float sum = 0.f;
#pragma unroll
      for (int i = 2 * r; i < kKeys / 2; i += 4) {
        s[i] = exp2_fast(fmaf(s[i], factor, -base));
        s[i + 1] = exp2_fast(fmaf(s[i + 1], factor, -base));
        sum += s[i] + s[i + 1];
      }
      total[r] = fmaf(total[r], before[r], sum);
    }
  }

  // The weights as the left operand of the next product.
  __device__ __forceinline__ void pack_weights() {
    if (kCareful) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i)
        shared.weights[group * kGroupRows + local_row + i / 2 % 2 * 8]
                      [i / 4 * 8 + lane % 4 * 2 + i % 2] = s[i];
    }
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) p[i][j] = pack(T{}, s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
  }

  __device__ __forceinline__ void rescale() {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] *= before[i / 2 % 2];
  }

  // Care: clears what is not finite from a tile of values, and notes whose keys it was. By both
  // warpgroups.
  __device__ void clear_special(int stage) {
    constexpr unsigned kExponent = std::is_same<T, bf16>::value ? 0x7f80u : 0x7c00u;
    const int i = int(threadIdx.x) - 128;
    named_sync(3, kConsumers);
    if (i < kKeys / 32) shared.special[i] = 0;
    named_sync(3, kConsumers);
    uint16_t* values = reinterpret_cast<uint16_t*>(&shared.v[stage]);
    for (int e = i; e < kKeys * kDim; e += kConsumers) {
      if ((values[e] & kExponent) != kExponent) continue;
      const int key = e / kSwizzledColumns % kKeys;
      values[e] = 0;
      atomicOr(&shared.special[key / 32], 1u << key % 32);
    }
    fence_async();
    named_sync(3, kConsumers);
  }

  // Care: adds what clear_special took away, for the rows that see it.
  __device__ void add_special(int n) {
    __syncwarp();
    for (int j = 0; j < kKeys && n + j < a.keys; ++j) {
      if (!(shared.special[j / 32] >> j % 32 & 1)) continue;
      const T* v = static_cast<const T*>(a.v) + tile.b * a.v_stride[0] +
                   tile.h / (a.heads / a.kv_heads) * a.v_stride[1] + (n + j) * a.v_stride[2];
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) {
        const int r = i / 2 % 2;
        const float value = to_float(v[i / 4 * 8 + lane % 4 * 2 + i % 2]);
        if (fabsf(value) < INFINITY || n + j < low[r] || n + j > high[r]) continue;
        o[i] += shared.weights[group * kGroupRows + local_row + 8 * r][j] * value;
      }
    }
    __syncwarp();
  }

  // o += p v for the keys n, n + 1, ..., with nothing else under way.
  __device__ __forceinline__ void sum_values(Ring& values, int n) {
    barrier_wait(&shared.v_full[values.stage()], values.parity());
    if (kCareful) clear_special(values.stage());
    add_values(values.stage());
    wgmma_wait<0>();
    keep(o);
    keep(p);
    release(&shared.v_empty[values.stage()]);
    values.next();
    if (kCareful) add_special(n);
  }

  __device__ __forceinline__ void store() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      total[r] += __shfl_xor_sync(kFullWarp, total[r], 1);
      total[r] += __shfl_xor_sync(kFullWarp, total[r], 2);
      bool special = false;
#pragma unroll
      for (int i = 2 * r; i < kDim / 2; i += 4)
        special |= !(fabsf(o[i]) < INFINITY) || !(fabsf(o[i + 1]) < INFINITY);
      special |= __shfl_xor_sync(kFullWarp, int(special), 1);
      special |= __shfl_xor_sync(kFullWarp, int(special), 2);
      const int row = tile.first + group * kGroupRows + local_row + 8 * r;
      if (row >= a.rows) continue;
      const float scale = 1.f / (total[r] == 0 ? 1.f : total[r]);
      T* out = static_cast<T*>(a.out) + tile.b * a.out_stride[0] + tile.h * a.out_stride[1] +
               row * a.out_stride[2] + lane % 4 * 2;
#pragma unroll
      for (int i = 2 * r; i < kDim / 2; i += 4)
        *reinterpret_cast<unsigned*>(out + i / 4 * 8) = pack(T{}, o[i] * scale, o[i + 1] * scale);
      if (lane % 4) continue;
      float lse = total[r] == 0 ? -INFINITY : m[r] * factor() + logf(total[r]);
      if (!kCareful && special) lse = __uint_as_float(kMark);
      *lse_at(a, tile, row) = lse;
    }
  }

  // The other warpgroup has the tensor cores; then it is this one's turn.
  __device__ __forceinline__ void take_turn() {
    if (!kCareful) named_sync(1 + group, kConsumers);
  }
  __device__ __forceinline__ void pass_turn() {
    if (!kCareful) named_arrive(2 - group, kConsumers);
  }

  __device__ __forceinline__ void run(int count) {
    int q_parity = 0;
    Ring keys, values;
    if (group == 1) pass_turn();
    for (int index = int(blockIdx.x); index < count; index += int(gridDim.x)) {
      const Tile t = tile_at<kKeys>(a, index);
      if (kCareful) {
        const bool skip = !marked(a, t);
        named_sync(3, kConsumers);  // before the marks of one half are overwritten
        if (skip) continue;
      }
      start(t);
      if (t.begin < t.end) {
        barrier_wait(&shared.q_full, q_parity);
        q_parity ^= 1;
        barrier_wait(&shared.k_full[keys.stage()], keys.parity());
        take_turn();
        score(keys.stage());
        pass_turn();
        wgmma_wait<0>();
        keep(s);
        release(&shared.k_empty[keys.stage()]);
        keys.next();
        weigh(t.begin);
        pack_weights();
        int n = t.begin + kKeys;
        for (; n < t.end; n += kKeys) {
          // With care the values are summed first: it takes the registers of the scores.
          if (kCareful) sum_values(values, n - kKeys);
          barrier_wait(&shared.k_full[keys.stage()], keys.parity());
          take_turn();
          score(keys.stage());
          if (!kCareful) {
            barrier_wait(&shared.v_full[values.stage()], values.parity());
            add_values(values.stage());
          }
          pass_turn();
          wgmma_wait<kCareful ? 0 : 1>();
          keep(s);
          release(&shared.k_empty[keys.stage()]);
          keys.next();
          weigh(n);
          if (!kCareful) {
            wgmma_wait<0>();
            keep(o);
            keep(p);
            release(&shared.v_empty[values.stage()]);
            values.next();
          }
          rescale();
          pack_weights();
        }
        release(&shared.q_empty);
        sum_values(values, n - kKeys);
      }
      store();
    }
  }
};

#endif  // HEXAD_HOPPER

template <class T, int kDim, bool kCareful>
__global__ void __launch_bounds__(kThreads, 1)
    sm90_attention_kernel(AttentionArgs a, const __grid_constant__ TensorMap q_map,
                          const __grid_constant__ TensorMap k_map,
                          const __grid_constant__ TensorMap v_map, int count) {
#ifdef HEXAD_HOPPER
  using Memory = CarefulShared<T, kDim>;
  HEXAD_DYNAMIC_SHARED_1024(Memory, memory);
  if (threadIdx.x == 0) {
    barrier_init(&memory->q_full, 1);
    barrier_init(&memory->q_empty, kReleases);
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&memory->k_full[s], 1);
      barrier_init(&memory->k_empty[s], kReleases);
      barrier_init(&memory->v_full[s], 1);
      barrier_init(&memory->v_empty[s], kReleases);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x < 32) produce<T, kDim, kCareful>(a, q_map, k_map, v_map, *memory, count);
  } else {
    take_registers<232>();
    Consumer<T, kDim, kCareful>(a, *memory).run(count);
  }
#endif
}

// A tensor (batch, heads, rows, dim) as bulk copies can read it.
bool mappable(const void* base, const int64_t (&stride)[3], const int64_t (&size)[3]) {
  if (reinterpret_cast<uintptr_t>(base) % 16) return false;
  for (int i = 0; i < 3; ++i)
    if (size[i] > 1 && (stride[i] < 8 || stride[i] % 8 || stride[i] >= int64_t(1) << 39))
      return false;
  return true;
}

TensorMap map_of(const void* base, bool is_bf16, int dim, const int64_t (&stride)[3],
                 const int64_t (&size)[3], int rows) {
  const int64_t sizes[4] = {dim, size[2], size[1], size[0]};
  int64_t strides[3];
  for (int i = 0; i < 3; ++i) strides[i] = size[2 - i] > 1 ? stride[2 - i] * 2 : dim * 2;
  return tensor_map("attention", base, is_bf16, sizes, strides, rows);
}

template <class T, int kDim>
void run(const AttentionArgs& a, int count, hexad_stream stream) {
  const int64_t queries[3] = {a.batch, a.heads, a.rows}, keys[3] = {a.batch, a.kv_heads, a.keys};
  const TensorMap q = map_of(a.q, a.bf16, kDim, a.q_stride, queries, kRows);
  const TensorMap k = map_of(a.k, a.bf16, kDim, a.k_stride, keys, Tiles<T, kDim>::kKeys);
  const TensorMap v = map_of(a.v, a.bf16, kDim, a.v_stride, keys, Tiles<T, kDim>::kKeys);
  const unsigned grid = unsigned(min(count, multiprocessors()));
  launch("attention", sm90_attention_kernel<T, kDim, false>, grid, kThreads,
         sizeof(Shared<T, kDim>), stream, a, q, k, v, count);
  launch("attention", sm90_attention_kernel<T, kDim, true>, grid, kThreads,
         sizeof(CarefulShared<T, kDim>), stream, a, q, k, v, count);
}

template <class T>
bool run(const AttentionArgs& a, int count, hexad_stream stream) {
  switch (a.head_dim) {
    case 64:
      return run<T, 64>(a, count, stream), true;
    case 128:
      return run<T, 128>(a, count, stream), true;
    case 256:
      return run<T, 256>(a, count, stream), true;
  }
  return false;
}

}  // namespace

bool sm90_attention(const AttentionArgs& a, hexad_stream stream) {
  if (!(a.bf16 || a.f16) || a.mask || a.slopes || a.sinks || a.head_dim != a.value_dim ||
      !(a.scale > 0) || a.keys == 0 || !on_hopper())
    return false;
  const int64_t queries[3] = {a.batch, a.heads, a.rows}, keys[3] = {a.batch, a.kv_heads, a.keys};
  if (!mappable(a.q, a.q_stride, queries) || !mappable(a.k, a.k_stride, keys) ||
      !mappable(a.v, a.v_stride, keys))
    return false;
  if (reinterpret_cast<uintptr_t>(a.out) % 4 || a.out_stride[0] % 2 || a.out_stride[1] % 2 ||
      a.out_stride[2] % 2)
    return false;
  constexpr int64_t kMost = (int64_t(1) << 31) - 4096;
  const int64_t count = (a.rows + kRows - 1) / kRows * a.batch * a.heads;
  if (a.rows > kMost || a.keys > kMost || count > kMost) return false;
  return a.bf16 ? run<bf16>(a, int(count), stream) : run<f16>(a, int(count), stream);
}

}  // namespace cuda
}  // namespace hexad
