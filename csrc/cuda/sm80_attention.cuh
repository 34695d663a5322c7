// Attention on the tensor cores of sm_80, FlashAttention-2's way: a block per 128 rows,
// kTiles times 16 of them a warp; keys in tiles of kKeys counted from key 0, copied in by cp.async
// while the tile before is worked on; scores, softmax and weights stay in registers. Exponents are
// powers of two, scale * log2 e is folded into them.
//
// What a row does not see may lie in a tile beside what it sees, and 0 times infinity is not 0. So
// a block whose sums are not finite goes over its tiles once more with care. Both ways give a row
// the same bits where what it sees is finite.
#pragma once

#include "cuda/attend.cuh"
#include "cuda/fragments.cuh"

namespace hexad {
namespace cuda {
namespace {

template <int kDim, int kKeys, int kTiles, int kWarps, int kStages>
struct Layout {
  static constexpr int kRows = 16 * kTiles * kWarps, kThreads = 32 * kWarps;
  static constexpr int kPitch = kPitchOf<kDim>, kTile = kKeys * kPitch;
  static constexpr size_t kShared = (size_t(kRows) * kPitch + 2 * kStages * kTile) * 2;
};

// The rows of a lane: fragment m holds row g in its numbers 0 and 1, row g + 8 in 2 and 3.
struct Lane {
  int row, t;  // the packed row of fragment 0's row g; columns 2t, 2t + 1 of each eight
};

// Which of the kKeys keys from n on each row sees, a bit for each number of its fragment.
template <int kKeys, int kTiles>
__device__ inline void find_seen(unsigned (&seen)[kTiles], const AttendTask& task,
                                 const AttendPlace& p, const Lane& lane, int n) {
  const AttentionArgs& a = task.a;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    seen[m] = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.row + 16 * m + 8 * half;
      if (row >= p.rows) continue;
      const int i = row / task.pack, position = i + p.offset;
      const int low = a.left >= 0 ? position - int(a.left) - n : 0;
      const int reach = a.right >= 0 ? position + int(a.right) - n : kKeys;
      const int high = reach < p.keys - n - 1 ? reach : p.keys - n - 1;
      unsigned bits = 0;
#pragma unroll
      for (int k = 0; k < kKeys / 4; ++k) {
        const int key = k / 2 * 8 + 2 * lane.t + k % 2;
        bits |= unsigned(key >= low && key <= high) << (k / 2 * 4 + k % 2);
      }
      if (a.mask && a.mask_kind == 0) {
        const uint8_t* mask = static_cast<const uint8_t*>(a.mask) +
                              int64_t(p.b) * a.mask_stride[0] +
                              (p.head + row % task.pack) * a.mask_stride[1] + i * a.mask_stride[2] +
                              (n + 2 * lane.t) * a.mask_stride[3];
#pragma unroll
        for (int k = 0; k < kKeys / 8; ++k) {
          unsigned pair = 0;
          if (task.mask_pairs && n + 8 * k + 2 * lane.t + 1 < p.keys) {
            const unsigned both = *reinterpret_cast<const uint16_t*>(mask + 8 * k);
            pair = (both & 0xff ? 1 : 0) | (both >> 8 ? 2 : 0);
          } else {
            for (int c = 0; c < 2; ++c)
              if (bits >> (4 * k + c) & 1)
                pair |= unsigned(mask[(8 * k + c) * a.mask_stride[3]] != 0) << c;
          }
          bits &= pair << (4 * k) | ~(3u << (4 * k));
        }
      }
      seen[m] |= bits << (2 * half);
    }
  }
}

// Scores as the options have them, in powers of two; a bias of -inf hides its key.
template <int kTiles, int kN>
__device__ inline void shape_scores(float (&s)[kTiles][kN][4], unsigned (&seen)[kTiles],
                                    const AttendTask& task, const AttendPlace& p, const Lane& lane,
                                    int n) {
  const AttentionArgs& a = task.a;
  // An option at a time: fewer branches, which the compiler takes long over.
  const auto each = [&](auto change) {
#pragma unroll
    for (int i = 0; i < kTiles * kN * 4; ++i) {
      float& x = s[i / (kN * 4)][i / 4 % kN][i % 4];
      x = change(x);
    }
  };
  if (a.softcap > 0)
    each([&](float x) { return a.softcap * tanhf(x * a.scale / a.softcap) * kLog2e; });
  else
    each([&](float x) { return x * a.scale * kLog2e; });
  if (!a.slopes && !(a.mask && a.mask_kind != 0)) return;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.row + 16 * m + 8 * half;
      if (row >= p.rows) continue;
      const int i = row / task.pack, head = p.head + row % task.pack;
      const auto each_key = [&](auto change) {
#pragma unroll
        for (int k = 0; k < 2 * kN; ++k) {
          const int e = 2 * half + k % 2;
          change(s[m][k / 2][e], n + k / 2 * 8 + 2 * lane.t + k % 2, 1u << (k / 2 * 4 + e));
        }
      };
      if (a.slopes) {
        const float slope = a.slopes[head] * kLog2e;
        each_key([&](float& x, int key, unsigned) {
          const int ahead = key - (i + p.offset);
          x = fmaf(-slope, float(ahead < 0 ? -ahead : ahead), x);
        });
      }
      if (a.mask && a.mask_kind != 0) {
        const int64_t mask_row =
            int64_t(p.b) * a.mask_stride[0] + head * a.mask_stride[1] + i * a.mask_stride[2];
        each_key([&](float& x, int key, unsigned bit) {
          if (!(seen[m] & bit)) return;
          const float bias = mask_bias(a, mask_row + key * a.mask_stride[3]);
          x = fmaf(bias, kLog2e, x);
          if (x < -kMostFloat) x = -kMostFloat;  // the least float hides no key
          if (bias == -INFINITY) seen[m] &= ~bit;
        });
      }
    }
}

// Maximum and sum of a row so far, the sum of this lane's columns only.
struct Running {
  float maximum, sum;
};

// Scores become weights; what was summed before shrinks to the new maximum.
template <int kTiles, int kN, int kColumns>
__device__ inline void soften(float (&s)[kTiles][kN][4], float (&acc)[kTiles][kColumns][4],
                              Running (&run)[kTiles][2], const unsigned (&seen)[kTiles],
                              float factor) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
#pragma unroll
      for (int k = 0; k < 2 * kN; ++k) {
        const int e = 2 * half + k % 2;
        if (!(seen[m] >> (k / 2 * 4 + e) & 1)) s[m][k / 2][e] = -INFINITY;
        top = fmaxf(top, s[m][k / 2][e]);
      }
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
      Running& r = run[m][half];
      const float maximum = fmaxf(r.maximum, top * factor);
      const float base = maximum == -INFINITY ? 0.f : maximum;
      const float before = exp2_fast(r.maximum - base);
      r.maximum = maximum;
      float sum = 0.f;
#pragma unroll
      for (int k = 0; k < 2 * kN; ++k) {
        float& x = s[m][k / 2][2 * half + k % 2];
        x = exp2_fast(fmaf(x, factor, -base));
        sum += x;
      }
      r.sum = fmaf(r.sum, before, sum);
      if (__any_sync(kFullWarp, before != 1))
#pragma unroll
        for (int i = 0; i < kColumns * 2; ++i) acc[m][i / 2][2 * half + i % 2] *= before;
    }
}

template <class T, int kDim, int kKeys, int kTiles, int kWarps, int kStages, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) attention_kernel(AttendTask task) {
  using L = Layout<kDim, kKeys, kTiles, kWarps, kStages>;
  HEXAD_DYNAMIC_SHARED(T, queries);
  HEXAD_SHARED(int, any_spoilt, [1]);
  T* const tiles = queries + L::kRows * L::kPitch;  // keys, values of each stage
  const AttentionArgs& a = task.a;
  // In shared memory, since the registers are full.
  HEXAD_SHARED(AttendPlace, place, [1]);
  if (threadIdx.x == 0 && !place_block(task, L::kRows, place[0])) place[0].rows = 0;
  __syncthreads();
  const AttendPlace& p = place[0];
  if (p.first >= p.rows) return;
  const int warp = int(threadIdx.x) / 32, of_warp = 16 * kTiles * warp;
  const Lane lane{p.first + of_warp + int(threadIdx.x) % 32 / 4, int(threadIdx.x) % 4};
  const int pack = task.pack, group = int(a.heads / a.kv_heads);
  const int first_position = p.first / pack + p.offset;
  const int last_row = p.first + L::kRows < p.rows ? p.first + L::kRows - 1 : p.rows - 1;
  int begin, end;
  key_range(a, p.keys, first_position, last_row / pack + p.offset, kKeys, begin, end);
  // The warp's own rows; it works on a tile only if one of them may see a key there.
  const bool idle = p.first + of_warp >= p.rows;
  const int last_own = p.first + of_warp + 16 * kTiles - 1;
  const int low_position = (p.first + of_warp) / pack + p.offset;
  const int high_position = (last_own < p.rows ? last_own : p.rows - 1) / pack + p.offset;
  const bool shaped = a.softcap > 0 || a.slopes || (a.mask && a.mask_kind != 0) || !(a.scale > 0);
  const float factor = shaped ? 1.f : a.scale * kLog2e;

  const auto fetch_keys = [&](int n, T* to) {
    fetch<T, kDim, L::kThreads>(to, kKeys, p.keys - n, int(a.head_dim), task.vector, [&](int r) {
      return row_of<T>(a.k, a.k_stride, p.b, p.head / group, p.k_start + n + r);
    });
  };
  const auto fetch_values = [&](int n, T* to) {
    fetch<T, kDim, L::kThreads>(to, kKeys, p.keys - n, int(a.value_dim), task.vector, [&](int r) {
      return row_of<T>(a.v, a.v_stride, p.b, p.head / group, p.k_start + n + r);
    });
  };
  if (begin < end)
    fetch<T, kDim, L::kThreads>(
        queries, L::kRows, p.rows - p.first, int(a.head_dim), task.vector, [&](int r) {
          return row_of<T>(a.q, a.q_stride, p.b, p.head + (p.first + r) % pack,
                           p.q_start + (p.first + r) / pack);
        });

  float acc[kTiles][kDim / 8][4];
  Running run[kTiles][2];
  for (bool careful = false;; careful = true) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      run[m][0] = run[m][1] = {-INFINITY, 0.f};
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) acc[m][i / 4][i % 4] = 0.f;
    }
    if (begin < end) {
      fetch_keys(begin, tiles);
      if (kStages == 2) fetch_values(begin, tiles + L::kTile);
      cp_async_commit();
    }
    for (int n = begin; n < end; n += kKeys) {
      T* const keys = tiles + (kStages == 2 && (n - begin) / kKeys % 2 ? 2 * L::kTile : 0);
      T* const values = keys + L::kTile;
      cp_async_wait<0>();
      __syncthreads();
      // With one stage a tile's values come while it is scored, the next keys while it is weighed;
      // with two, the next of both while this is worked on.
      if (kStages == 1) {
        fetch_values(n, values);
      } else if (n + kKeys < end) {
        T* const next = tiles + (keys == tiles ? 2 * L::kTile : 0);
        fetch_keys(n + kKeys, next);
        fetch_values(n + kKeys, next + L::kTile);
      }
      cp_async_commit();

      bool works = !idle && !(a.left >= 0 && n + kKeys <= low_position - int(a.left)) &&
                   !(a.right >= 0 && n > high_position + int(a.right));
      unsigned seen[kTiles];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) seen[m] = ~0u;
      if (works && (n + kKeys > p.keys || (a.mask && a.mask_kind == 0) ||
                    (a.left >= 0 && n < high_position - int(a.left)) ||
                    (a.right >= 0 && n + kKeys - 1 > low_position + int(a.right)))) {
        find_seen<kKeys, kTiles>(seen, task, p, lane, n);
        unsigned any = seen[0];
        if (kTiles == 2) any |= seen[kTiles - 1];
        works = __any_sync(kFullWarp, any != 0);
      }
      float s[kTiles][kKeys / 8][4];
      if (works) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int i = 0; i < kKeys / 2; ++i) s[m][i / 4][i % 4] = 0.f;
        scores<T, kDim>(s, queries + of_warp * L::kPitch, keys);
      }
      if (kStages == 1) {
        cp_async_wait<0>();
        __syncthreads();
        if (n + kKeys < end) fetch_keys(n + kKeys, keys);
        cp_async_commit();
      }
      if (works) {
        if (shaped) shape_scores(s, seen, task, p, lane, n);
        soften(s, acc, run, seen, factor);
        if (careful) {
          weigh<true, T, kDim>(acc, s, values);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) add_special<T, kDim>(acc[m], s[m], seen[m], values);
        } else {
          weigh<false, T, kDim>(acc, s, values);
        }
      }
    }
    if (careful || begin >= end) break;
    if (threadIdx.x == 0) any_spoilt[0] = 0;
    __syncthreads();
    if (spoilt<kTiles, kDim / 8>(acc)) any_spoilt[0] = 1;
    __syncthreads();
    if (!any_spoilt[0]) break;
  }
  if (idle) return;

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    float share[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Running r = run[m][half];
      float total = r.sum + __shfl_xor_sync(kFullWarp, r.sum, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      const int row = lane.row + 16 * m + 8 * half, head = p.head + row % pack;
      float maximum = r.maximum == -INFINITY ? 0.f : r.maximum, shrink = 1.f;
      float natural = fmaf(maximum, kLn2High, maximum * kLn2Low);
      if (a.sinks && row < p.rows && a.sinks[head] != -INFINITY) {
        const float sink = a.sinks[head] * kLog2e;
        if (r.maximum < sink) {
          shrink = exp2_fast(r.maximum - sink), natural = a.sinks[head];
          total = fmaf(total, shrink, 1.f);
        } else {
          total += exp2_fast(sink - maximum);
        }
      }
      share[half] = total == 0 ? 0.f : shrink / total;
      if (lane.t == 0 && row < p.rows)
        a.lse[int64_t(p.b) * a.lse_stride[0] + head * a.lse_stride[1] +
              (p.q_start + row / pack) * a.lse_stride[2]] =
            total == 0 ? -INFINITY : natural + logf(total);
    }
    const int first = p.first + of_warp + 16 * m;
    store_rows<T, kDim>(
        acc[m], share[0], share[1], queries + (of_warp + 16 * m) * L::kPitch, p.rows - first,
        int(a.value_dim), task.vector_out, [&](int r) {
          return const_cast<T*>(row_of<T>(a.out, a.out_stride, p.b, p.head + (first + r) % pack,
                                          p.q_start + (first + r) / pack));
        });
  }
}

template <class T, int kDim, int kKeys, int kTiles, int kWarps, int kStages, int kBlocks>
void run_attention(const char* op, AttendTask& task, hexad_stream stream) {
  using L = Layout<kDim, kKeys, kTiles, kWarps, kStages>;
  // Few rows a sequence: the heads that share keys share blocks too.
  const int64_t group = task.a.heads / task.a.kv_heads;
  const int64_t sequences = task.cu_q ? task.a.batch : 1;
  task.pack = task.a.rows < L::kRows * (sequences > 0 ? sequences : 1) ? int(group) : 1;
  const unsigned count = blocks(op, attend_blocks(task, L::kRows));
  if (count)
    launch(op, attention_kernel<T, kDim, kKeys, kTiles, kWarps, kStages, kBlocks>, count,
           L::kThreads, L::kShared, stream, task);
}

template <class T>
void by_head_dim(const char* op, AttendTask task, hexad_stream stream) {
  const int64_t dim = task.a.head_dim > task.a.value_dim ? task.a.head_dim : task.a.value_dim;
  if (dim <= 64)
    run_attention<T, 64, 64, 2, 4, 2, 2>(op, task, stream);
  else if (dim <= 96)
    run_attention<T, 96, 64, 2, 4, 2, 2>(op, task, stream);
  else if (dim <= 128)
    run_attention<T, 128, 32, 2, 4, 2, 2>(op, task, stream);
  else
    run_attention<T, 256, 64, 1, 8, 1, 1>(op, task, stream);
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
