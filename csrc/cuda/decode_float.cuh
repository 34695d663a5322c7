// decode of float32 queries on the ordinary cores: a warp reads four cached rows at a time, a lane
// four neighbouring dimensions of each, and up to four query heads share what was read.
#pragma once

#include "cuda/decode_rows.cuh"
#include "cuda/float8.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kRowsAtOnce = 4, kFloatTeam = 4;

__device__ inline float one(float x, int) {
  return x;
}
__device__ inline float one(int8_t x, int) {
  return float(x);
}
__device__ inline float one(Float8 x, int kind) {
  return float_of(x, kind);
}
__device__ inline float4 widened(const float* p, int) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ inline float4 widened(const Float8* p, int kind) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
  const auto at = [&](int i) { return float_of(Float8{uint8_t(word >> 8 * i)}, kind); };
  return {at(0), at(1), at(2), at(3)};
}
__device__ inline float4 widened(const int8_t* p, int) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
  return {float(int8_t(word)), float(int8_t(word >> 8)), float(int8_t(word >> 16)),
          float(int8_t(word >> 24))};
}

// Up to 4 elements, the rest zeros; kind: of float8.
template <class C>
__device__ inline float4 four(const C* from, int64_t count, bool aligned, int kind = 0) {
  if (aligned && count >= 4) return widened(from, kind);
  return {count > 0 ? one(from[0], kind) : 0.f, count > 1 ? one(from[1], kind) : 0.f,
          count > 2 ? one(from[2], kind) : 0.f, count > 3 ? one(from[3], kind) : 0.f};
}
__device__ inline float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ inline void add(float4& sum, float w, float4 v) {
  sum = {fmaf(w, v.x, sum.x), fmaf(w, v.y, sum.y), fmaf(w, v.z, sum.z), fmaf(w, v.w, sum.w)};
}

// kChunks of 128 dimensions.
template <class C, int kChunks>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    decode_kernel_float(DecodeArgs a, bool aligned) {
  const Part p = part_of<kFloatTeam>(a);
  if (p.idle) return;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const C* const k = static_cast<const C*>(a.k);
  const C* const v = static_cast<const C*>(a.v);
  float4 q[kFloatTeam][kChunks], o[kFloatTeam][kChunks];
  float m[kFloatTeam], total[kFloatTeam], slope[kFloatTeam];
#pragma unroll
  for (int h = 0; h < kFloatTeam; ++h) {
    const float* row = static_cast<const float*>(a.q) + p.b * a.q_stride[0] +
                       (p.head + (h < p.heads ? h : 0)) * a.q_stride[1];
    m[h] = -INFINITY, total[h] = 0.f, slope[h] = slope_of(a, p, h);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t d = 128 * c + 4 * lane;
      q[h][c] = four(row + d, a.head_dim - d, false);
      o[h][c] = {0.f, 0.f, 0.f, 0.f};
    }
  }

  constexpr int64_t kStep = kDecodeWarps * kRowsAtOnce;
  int64_t n = p.begin / kStep * kStep + warp * kRowsAtOnce;
  int32_t page[kRowsAtOnce];
#pragma unroll
  for (int j = 0; j < kRowsAtOnce; ++j) page[j] = page_of(a, p, n + j);
  const int turns = same_in_warp(n < p.end ? int((p.end - n + kStep - 1) / kStep) : 0);
  for (int turn = 0; turn < turns; ++turn, n += kStep) {
    float4 key[kRowsAtOnce][kChunks], value[kRowsAtOnce][kChunks];
    float k_scale[kRowsAtOnce], v_scale[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const bool here = n + j >= p.begin && n + j < p.end;
      const C* key_row = k + (here ? offset_of(a, p, a.k_stride, page[j], n + j) : 0);
      const C* value_row = v + (here ? offset_of(a, p, a.v_stride, page[j], n + j) : 0);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int64_t d = 128 * c + 4 * lane;
        key[j][c] = four(key_row + d, here ? a.head_dim - d : 0, aligned, a.float8);
        value[j][c] = four(value_row + d, here ? a.value_dim - d : 0, aligned, a.float8);
      }
      const bool scaled = a.k_scale && here;
      k_scale[j] = scaled ? a.k_scale[offset_of(a, p, a.k_scale_stride, page[j], n + j)] : 1.f;
      v_scale[j] = scaled ? a.v_scale[offset_of(a, p, a.v_scale_stride, page[j], n + j)] : 1.f;
      page[j] = page_of(a, p, n + kStep + j);
    }
#pragma unroll
    for (int h = 0; h < kFloatTeam; ++h) {
      if (h >= p.heads) break;
      float s[kRowsAtOnce], most = m[h];
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) {
        float sum = 0.f;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) sum = dot(q[h][c], key[j][c], sum);
        sum = warp_sum(sum) * a.scale * k_scale[j];
        s[j] = n + j < p.begin || n + j >= p.end ? -INFINITY : score_of(a, p, sum, slope[h], n + j);
        most = fmaxf(most, s[j]);
      }
      const float base = most == -INFINITY ? 0.f : most, before = expf(m[h] - base);
      m[h] = most;
      total[h] *= before;
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        o[h][c] = {o[h][c].x * before, o[h][c].y * before, o[h][c].z * before, o[h][c].w * before};
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) {
        const float weight = expf(s[j] - base);
        total[h] += weight;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) add(o[h][c], weight * v_scale[j], value[j][c]);
      }
    }
  }

  constexpr int kPitch = 128 * kChunks;
  HEXAD_SHARED(float, tops, [kDecodeWarps * kFloatTeam]);
  HEXAD_SHARED(float, totals, [kDecodeWarps * kFloatTeam]);
  HEXAD_SHARED(float4, sums, [kDecodeWarps * kFloatTeam * kPitch / 4]);
#pragma unroll
  for (int h = 0; h < kFloatTeam; ++h) {
    const int row = warp * kFloatTeam + h;
    if (lane == 0) tops[row] = m[h], totals[row] = total[h];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) sums[row * kPitch / 4 + 32 * c + lane] = o[h][c];
  }
  hand_over<kFloatTeam>(a, p, tops, totals, reinterpret_cast<const float*>(sums), kPitch);
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
