// Tiles of 16-bit numbers in shared memory and their products: rows of kDim numbers and 16 bytes
// between them, so that the eight rows of an ldmatrix lie in different banks.
#pragma once

#include "cuda/ampere.cuh"

namespace hexad {
namespace cuda {

struct alignas(16) Sixteen {
  unsigned x[4];
};

template <int kDim>
constexpr int kPitchOf = kDim + 8;

// `rows` rows, row r from at(r) while r < there, `width` numbers of each; the rest becomes 0.
// With `vector` by cp.async, which the caller commits and waits for.
template <class T, int kDim, int kThreads, class At>
__device__ inline void fetch(T* tile, int rows, int there, int width, bool vector, At at) {
  // A thread keeps to its columns; unrolled further, the addresses would fill the registers.
  constexpr int kChunks = kDim / 8, kStep = kThreads / kChunks;
  const int first = int(threadIdx.x) / kChunks, c = int(threadIdx.x) % kChunks * 8;
  if (first >= kStep) return;
  const int left = width - c, bytes = left <= 0 ? 0 : left < 8 ? 2 * left : 16;
#pragma unroll 1
  for (int r = first; r < rows; r += kStep) {
    const bool any = r < there && bytes > 0;
    const T* from = at(any ? r : 0);
    T* to = tile + r * kPitchOf<kDim> + c;
    if (vector) {
      cp_async<16>(to, any ? from + c : from, any ? bytes : 0);
    } else {
#pragma unroll 1
      for (int i = 0; i < 8; ++i) put(to + i, any && 2 * i < bytes ? to_float(from[c + i]) : 0.f);
    }
  }
}

// c[m][n] += A_m B_n^T for the kTiles fragments of 16 rows below `left` and the 8 kN rows of
// `right`.
template <class T, int kDim, int kTiles, int kN>
__device__ inline void scores(float (&c)[kTiles][kN][4], const T* left, const T* right) {
  const int lane = int(threadIdx.x) % 32;
  constexpr int kRow = 2 * kPitchOf<kDim>;  // bytes
  const SharedAt a_at = shared_at(left + lane % 16 * kPitchOf<kDim> + lane / 16 * 8);
  const SharedAt b_at =
      shared_at(right + (lane / 16 * 8 + lane % 8) * kPitchOf<kDim> + lane / 8 % 2 * 8);
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    unsigned a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) ldmatrix_x4(a[m], a_at, 16 * m * kRow + 2 * d);
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      unsigned b[4];
      ldmatrix_x4(b, b_at, 8 * n * kRow + 2 * d);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma_m16n8k16<T>(c[m][n], a[m], b[0], b[1]);
        mma_m16n8k16<T>(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <class T>
struct Exponent;
template <>
struct Exponent<bf16> {
  static constexpr unsigned kOnes = 0x7f80;
};
template <>
struct Exponent<f16> {
  static constexpr unsigned kOnes = 0x7c00;
};

// The numbers of a pair that are infinite or NaN, as ones in the sign bits: an exponent of ones
// carries into it.
template <class T>
__device__ inline unsigned special_signs(unsigned pair) {
  constexpr unsigned kOnes = Exponent<T>::kOnes * 0x10001u, kLast = kOnes & ~(kOnes << 1);
  return ((pair & kOnes) + kLast) & 0x80008000u;
}

// A pair of numbers in which infinities and NaN are 0.
template <class T>
__device__ inline unsigned finite_part(unsigned pair) {
  return pair & ~((special_signs<T>(pair) >> 15) * 0xffffu);
}

// acc[m] += P_m B: the kTiles fragments P of 16 rows and 64 columns, as scores() leaves them,
// rounded to T, and the 64 rows of `right`. With kCareful, what is not finite in B counts as 0.
template <bool kCareful, class T, int kDim, int kTiles, int kN>
__device__ inline void weigh(float (&acc)[kTiles][kDim / 8][4], const float (&p)[kTiles][kN][4],
                             const T* right) {
  const int lane = int(threadIdx.x) % 32;
  constexpr int kRow = 2 * kPitchOf<kDim>;  // bytes
  const SharedAt b_at = shared_at(right + lane % 16 * kPitchOf<kDim> + lane / 16 * 8);
#pragma unroll
  for (int j = 0; j < kN / 2; ++j) {
    unsigned a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = p[m][2 * j + i / 2] + i % 2 * 2;
        a[m][i] = pack(T{}, pair[0], pair[1]);
      }
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      unsigned b[4];
      ldmatrix_x4_trans(b, b_at, 16 * j * kRow + 16 * n);
      if (kCareful)
        for (int i = 0; i < 4; ++i) b[i] = finite_part<T>(b[i]);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma_m16n8k16<T>(acc[m][n], a[m], b[0], b[1]);
        mma_m16n8k16<T>(acc[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// What weigh() left out when careful: each infinity and NaN of B, times its weight, to the rows
// whose bit in `seen` (4 n + i for p[n][i]) is set.
template <class T, int kDim, int kN>
__device__ inline void add_special(float (&acc)[kDim / 8][4], const float (&p)[kN][4],
                                   unsigned seen, const T* right) {
  const int lane = int(threadIdx.x) % 32;
  unsigned nonzero = 0, negative = 0;
#pragma unroll
  for (int i = 0; i < 4 * kN; ++i) {
    nonzero |= unsigned(p[i / 4][i % 4] != 0) << i;
    negative |= unsigned(p[i / 4][i % 4] < 0) << i;
  }
  for (int j = 0; j < 8 * kN; ++j) {
    const int owner = lane / 4 * 4 + j % 8 / 2, bit = j / 8 * 4 + j % 2;
    const unsigned sees = __shfl_sync(kFullWarp, seen, owner) >> bit;
    const unsigned counts = __shfl_sync(kFullWarp, nonzero, owner) >> bit;
    const unsigned minus = __shfl_sync(kFullWarp, negative, owner) >> bit;
    const T* row = right + j * kPitchOf<kDim> + lane % 4 * 2;
    float weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weight[half] = counts >> 2 * half & 1 ? minus >> 2 * half & 1 ? -1.f : 1.f : 0.f;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      keep_order();
      unsigned pair;
      memcpy(&pair, row + 8 * n, sizeof pair);
      const unsigned special = special_signs<T>(pair);
      if (!special) continue;
      T x[2];
      memcpy(x, &pair, sizeof pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool adds = special >> (15 + 16 * (i % 2)) & 1 && sees >> i / 2 * 2 & 1;
        acc[n][i] += adds ? weight[i / 2] * to_float(x[i % 2]) : -0.f;  // x + -0 is x
      }
    }
  }
}

// Whether an infinity or NaN came to lie in acc.
template <int kTiles, int kColumns>
__device__ inline bool spoilt(const float (&acc)[kTiles][kColumns][4]) {
  float zero = 0.f;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int i = 0; i < kColumns * 4; ++i) zero = fmaf(acc[m][i / 4][i % 4], 0.f, zero);
  return zero != 0;
}

// Rows of float32 fragments, times their factors, to memory: through `stage`, 16 rows of kPitchOf
// that this warp alone uses, so that a lane writes 16 bytes. Row r goes to at(r) while r < there.
template <class T, int kDim, class At>
__device__ inline void store_rows(const float (&acc)[kDim / 8][4], float factor, float factor_8,
                                  T* stage, int there, int width, bool vector, At at) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    unsigned* to = reinterpret_cast<unsigned*>(stage + g * kPitchOf<kDim> + 8 * n + 2 * t);
    to[0] = pack(T{}, acc[n][0] * factor, acc[n][1] * factor);
    to[8 * kPitchOf<kDim> / 2] = pack(T{}, acc[n][2] * factor_8, acc[n][3] * factor_8);
  }
  __syncwarp();
  for (int i = lane; i < 16 * (kDim / 8); i += 32) {
    const int r = i / (kDim / 8), c = i % (kDim / 8) * 8;
    if (r >= there || c >= width) continue;
    const T* from = stage + r * kPitchOf<kDim> + c;
    T* to = at(r) + c;
    if (vector && c + 8 <= width)
      *reinterpret_cast<Sixteen*>(to) = *reinterpret_cast<const Sixteen*>(from);
    else
      for (int j = 0; j < 8 && c + j < width; ++j) to[j] = from[j];
  }
  __syncwarp();
}

}  // namespace cuda
}  // namespace hexad
