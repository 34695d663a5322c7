// decode of bfloat16 and float16 queries by the matrix instruction. Keys and value columns stand in
// its 16 rows and up to 8 query heads in its 8 columns, so that no row is padding and a group of
// heads reads its cache once:
//
//   S^T (keys x heads) = K Q^T          O^T (columns x heads) += V^T P^T
//
// A dimension's place in the sum over dimensions is free, and so is a value column's place among
// the rows of O^T. Both are chosen so that a lane's part of the operands is 8 neighbouring elements
// of a cached row: they come by cp.async into slots that no other lane reads, a ring of stages per
// warp, and the loop has no barrier.
#pragma once

#include "cuda/ampere.cuh"
#include "cuda/decode_rows.cuh"
#include "cuda/float8.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kKeys = 16;  // of a tile; a warp takes every kDecodeWarps-th
constexpr int kTeam = 8;   // query heads of a block

template <class C, int kDim>
struct Ring {
  static constexpr int kStages = kDim > 128 && sizeof(C) == 2 ? 2 : 3;
  static constexpr int kSlot = 8 * sizeof(C), kRow = 32 * kSlot;
  static constexpr int kKeySlots = kDim / 16, kValueSlots = kDim / 16;
  static constexpr int kScales = (kKeySlots + kValueSlots) * kRow;  // where a lane's scale lies
  static constexpr int kStage = kScales + (sizeof(C) == 1 ? 32 * 4 : 0);
  static constexpr int kBytes = kDecodeWarps * kStages * kStage;
  static constexpr int kSums = kDecodeWarps * kTeam * (kDim + 4 + 2) * 4;
  static constexpr int kShared = kBytes > kSums ? kBytes : kSums;
};

// Two floats as two elements of a register.
template <class T>
__device__ inline uint32_t two(float low, float high) {
  T pair[2];
  put(pair, low);
  put(pair + 1, high);
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}

struct Eight {
  uint32_t pair[4];
};

__device__ inline float byte_at(uint32_t biased, int i) {
  // 2^23 + a byte, as a float: the byte is its lowest bits.
  return __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7540u + unsigned(i))) -
         (8388608.f + 128.f);
}

template <class T>
__device__ inline Eight eight(const unsigned char* slot, T, const Float8Pairs<T>&) {
  const uint4 v = *reinterpret_cast<const uint4*>(slot);
  return {{v.x, v.y, v.z, v.w}};
}
template <class T>
__device__ inline Eight eight(const unsigned char* slot, Float8, const Float8Pairs<T>& pairs) {
  const uint2 v = *reinterpret_cast<const uint2*>(slot);
  Eight found;
  pairs.of(v.x, found.pair[0], found.pair[1]);
  pairs.of(v.y, found.pair[2], found.pair[3]);
  return found;
}
template <class T>
__device__ inline Eight eight(const unsigned char* slot, int8_t, const Float8Pairs<T>&) {
  const uint2 v = *reinterpret_cast<const uint2*>(slot);
  const uint32_t low = v.x ^ 0x80808080u, high = v.y ^ 0x80808080u;
  return {{two<T>(byte_at(low, 0), byte_at(low, 1)), two<T>(byte_at(low, 2), byte_at(low, 3)),
           two<T>(byte_at(high, 0), byte_at(high, 1)), two<T>(byte_at(high, 2), byte_at(high, 3))}};
}

// A lane's pieces of a tile's rows into its slots, 8 elements or zeros each; lane l has where key l
// lies, lane 16 + l the same of its value, INT64_MIN: nowhere. Elements that are not aligned come
// one by one, in loops that stay loops.
template <bool kAligned, int kDim, class C>
__device__ inline void fetch_rows(unsigned char* slot, const C* k, const C* v, int64_t at,
                                  const DecodeArgs& a) {
  using R = Ring<C, kDim>;
  constexpr int kOften = kAligned ? 8 : 1;
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const auto fetch = [](unsigned char* to, const C* from, int count) {
    const int n = count >= 8 ? 8 : count > 0 ? count : 0;
    if constexpr (kAligned) {
      cp_async<8 * sizeof(C)>(to, from, n * int(sizeof(C)));
    } else {
      for (int i = 0; i < 8; ++i) reinterpret_cast<C*>(to)[i] = i < n ? from[i] : C{};
    }
  };
#pragma unroll kOften
  for (int half = 0; half < 2; ++half) {
    const int64_t row = __shfl_sync(kFullWarp, at, g + 8 * half);
    const int count = row == INT64_MIN ? 0 : int(a.head_dim) - 8 * t;
    const C* const from = row == INT64_MIN ? k : k + row + 8 * t;
#pragma unroll kOften
    for (int c = 0; c < kDim / 32; ++c)
      fetch(slot + (2 * c + half) * R::kRow, from + 32 * c, count - 32 * c);
  }
  slot += R::kKeySlots * R::kRow;
#pragma unroll kOften
  for (int j = 0; j < 4; ++j) {
    const int64_t row = __shfl_sync(kFullWarp, at, kKeys + 2 * t + j / 2 * 8 + j % 2);
    const int count = row == INT64_MIN ? 0 : int(a.value_dim) - 8 * g;
    const C* const from = row == INT64_MIN ? v : v + row + 8 * g;
#pragma unroll kOften
    for (int c = 0; c < kDim / 64; ++c)
      fetch(slot + (4 * c + j) * R::kRow, from + 64 * c, count - 64 * c);
  }
}

// aligned: rows of the caches start at multiples of a slot.
template <class T, class C, int kDim>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_kernel(DecodeArgs a, bool aligned) {
  using R = Ring<C, kDim>;
  constexpr bool kNarrow = sizeof(C) == 1;
  const Float8Pairs<T> pairs(a.float8);
  const Part p = part_of<kTeam>(a);
  if (p.idle) return;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  HEXAD_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* const ring = shared + warp * R::kStages * R::kStage;
  const C* const k = static_cast<const C*>(a.k);
  const C* const v = static_cast<const C*>(a.v);

  Eight q[kDim / 32];
#pragma unroll
  for (int c = 0; c < kDim / 32; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* row =
          static_cast<const T*>(a.q) + p.b * a.q_stride[0] + (p.head + g) * a.q_stride[1];
      const int64_t d = 32 * c + 8 * t + 2 * i;
      q[c].pair[i] = two<T>(g < p.heads && d < a.head_dim ? to_float(row[d]) : 0.f,
                            g < p.heads && d + 1 < a.head_dim ? to_float(row[d + 1]) : 0.f);
    }

  const int64_t first = p.begin / kKeys, last = (p.end + kKeys - 1) / kKeys;
  const int64_t mine = first + (warp - first % kDecodeWarps + kDecodeWarps) % kDecodeWarps;
  const int tiles =
      same_in_warp(last > mine ? int((last - mine + kDecodeWarps - 1) / kDecodeWarps) : 0);

  // Lane l sees to key l of the next tile, lane 16 + l to its value.
  const auto key_of = [&](int tile) {
    return (mine + int64_t(tile) * kDecodeWarps) * kKeys + lane % kKeys;
  };
  int32_t page = page_of(a, p, key_of(0));
  const auto issue = [&](int tile) {
    if (tile < tiles) {
      unsigned char* const stage = ring + tile % R::kStages * R::kStage;
      const int64_t key = key_of(tile);
      const bool here = key >= p.begin && key < p.end;
      const int64_t at =
          here ? offset_of(a, p, lane < kKeys ? a.k_stride : a.v_stride, page, key) : INT64_MIN;
      if (kNarrow) {
        // The scales that a lane's four hold: of keys g and g + 8, of values g and g + 8.
        const int of = __shfl_sync(kFullWarp, page, g + (t & 1) * 8);
        const int64_t row = key - lane % kKeys + g + (t & 1) * 8;
        const bool there = row >= p.begin && row < p.end;
        const float* scale = t < 2 ? a.k_scale : a.v_scale;
        if (there) scale += offset_of(a, p, t < 2 ? a.k_scale_stride : a.v_scale_stride, of, row);
        cp_async<4>(stage + R::kScales + lane * 4, scale, there ? 4 : 0);
      }
      unsigned char* const slot = stage + lane * R::kSlot;
      aligned ? fetch_rows<true, kDim>(slot, k, v, at, a)
              : fetch_rows<false, kDim>(slot, k, v, at, a);
      page = page_of(a, p, key_of(tile + 1));
    }
    cp_async_commit();
  };

  // A lane has heads 2 t and 2 t + 1: of keys g and g + 8, and of columns 64 c + 8 g + 0..7.
  float m[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
  float o[kDim / 16][4] = {};
  const float slope[2] = {slope_of(a, p, 2 * t), slope_of(a, p, 2 * t + 1)};
  for (int tile = 1 - R::kStages; tile < tiles; ++tile) {
    if (tile >= 0) cp_async_wait<R::kStages - 2>();
    issue(tile + R::kStages - 1);
    if (tile < 0) continue;
    const unsigned char* const stage = ring + tile % R::kStages * R::kStage;
    const unsigned char* slot = stage + lane * R::kSlot;
    float s[4] = {}, odd[4] = {};
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) {
      const Eight top = eight<T>(slot + 2 * c * R::kRow, C{}, pairs),
                  low = eight<T>(slot + (2 * c + 1) * R::kRow, C{}, pairs);
      const uint32_t one[4] = {top.pair[0], low.pair[0], top.pair[1], low.pair[1]};
      const uint32_t other[4] = {top.pair[2], low.pair[2], top.pair[3], low.pair[3]};
      mma_m16n8k16<T>(s, one, q[c].pair[0], q[c].pair[1]);
      mma_m16n8k16<T>(odd, other, q[c].pair[2], q[c].pair[3]);
    }
    float scale[4] = {1.f, 1.f, 1.f, 1.f};
    if (kNarrow) {
      const float own = *reinterpret_cast<const float*>(stage + R::kScales + lane * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) scale[i] = __shfl_sync(kFullWarp, own, i, 4);
    }
    const int64_t key = (mine + int64_t(tile) * kDecodeWarps) * kKeys + g;
    float before[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t at = key + i / 2 * 8;
      s[i] = at < p.begin || at >= p.end
                 ? -INFINITY
                 : score_of(a, p, (s[i] + odd[i]) * a.scale * scale[i / 2], slope[i % 2], at);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float most = fmaxf(s[j], s[j + 2]);
      for (int n = 4; n < 32; n *= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, n));
      most = fmaxf(m[j], most);
      const float base = most == -INFINITY ? 0.f : most;
      before[j] = expf(m[j] - base);
      m[j] = most;
      const float now = expf(s[j] - base), later = expf(s[j + 2] - base);
      total[j] = fmaf(total[j], before[j], now + later);
      s[j] = now * scale[2];
      s[j + 2] = later * scale[3];
      if (kNarrow) {  // a hidden key's scale may be anything
        if (key < p.begin || key >= p.end) s[j] = 0.f;
        if (key + 8 < p.begin || key + 8 >= p.end) s[j + 2] = 0.f;
      }
    }
    // Each lane holds a key of two heads, and wants two keys of a head.
    uint32_t weights[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t own = two<T>(s[2 * half], s[2 * half + 1]);
      const uint32_t one = __shfl_sync(kFullWarp, own, 8 * t + g / 2),
                     other = __shfl_sync(kFullWarp, own, 8 * t + 4 + g / 2);
      weights[half] = __byte_perm(one, other, g % 2 ? 0x7632u : 0x5410u);
    }
    slot += R::kKeySlots * R::kRow;
#pragma unroll
    for (int c = 0; c < kDim / 64; ++c) {
      Eight row[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) row[j] = eight<T>(slot + (4 * c + j) * R::kRow, C{}, pairs);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float (&sum)[4] = o[4 * c + i];
        sum[0] *= before[0], sum[1] *= before[1], sum[2] *= before[0], sum[3] *= before[1];
        const uint32_t columns[4] = {__byte_perm(row[0].pair[i], row[1].pair[i], 0x5410u),
                                     __byte_perm(row[0].pair[i], row[1].pair[i], 0x7632u),
                                     __byte_perm(row[2].pair[i], row[3].pair[i], 0x5410u),
                                     __byte_perm(row[2].pair[i], row[3].pair[i], 0x7632u)};
        mma_m16n8k16<T>(sum, columns, weights[0], weights[1]);
      }
    }
  }
  cp_async_wait<0>();
#pragma unroll
  for (int j = 0; j < 2; ++j)
    for (int n = 4; n < 32; n *= 2) total[j] += __shfl_xor_sync(kFullWarp, total[j], n);

  // The ring has done its work; 4 floats more a row keep the lanes' writes in different banks.
  constexpr int kPitch = kDim + 4;
  float* const tops = reinterpret_cast<float*>(shared);
  float* const totals = tops + kDecodeWarps * kTeam;
  float* const sums = totals + kDecodeWarps * kTeam;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = warp * kTeam + 2 * t + j;
    if (g == 0) tops[row] = m[j], totals[row] = total[j];
#pragma unroll
    for (int c = 0; c < kDim / 16; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        sums[row * kPitch + c / 4 * 64 + 8 * g + c % 4 * 2 + half] = o[c][2 * half + j];
  }
  hand_over<kTeam>(a, p, tops, totals, sums, kPitch);
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
