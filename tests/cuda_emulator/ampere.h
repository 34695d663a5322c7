// What csrc/cuda/ampere.cuh has, for the emulator: warps meet as for a shuffle and the first to go
// on works out every lane's registers; a copy lands when its thread waits for it, and until then
// its place in shared memory holds NaN, so that a wait or barrier too few shows.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "cuda_emulator.h"

namespace cuda_emulator {

inline unsigned thread_index() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

inline void require_aligned(const void* p, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes)
    stop(std::string(what) + " wants " + std::to_string(bytes) + "-byte alignment");
}

// A lane's part of a matrix instruction. Of a warp that has met, the first lane to go on does the
// work of all and takes their parts off.
struct MatrixLane {
  const char* kind = nullptr;
  float* c;
  const unsigned* a;
  unsigned b[2];
  unsigned* r;
  const void* row;
};
inline MatrixLane matrix_lanes[1024];

template <class Work>
void together(const MatrixLane& mine, const char* file, int line, Work&& work) {
  MatrixLane& here = matrix_lanes[thread_index()];
  here = mine;
  warp_collective(Collective::sync, ~0u, 0, 0, 32, file, line);
  const Uninterrupted whole;
  if (!here.kind) return;
  MatrixLane* warp = matrix_lanes + thread_index() / 32 * 32;
  for (int i = 0; i < 32; ++i)
    if (warp[i].kind != mine.kind)
      stop(std::string("lanes of a warp meet at different instructions: ") + mine.kind);
  work(warp);
  for (int i = 0; i < 32; ++i) warp[i].kind = nullptr;
}

inline void ldmatrix(unsigned* r, int count, bool trans, const void* row, const char* kind,
                     const char* file, int line) {
  MatrixLane mine;
  mine.kind = kind, mine.r = r, mine.row = row;
  together(mine, file, line, [&](MatrixLane* warp) {
    for (int i = 0; i < count; ++i) {
      uint16_t m[8][8];
      for (int j = 0; j < 8; ++j) {
        require_aligned(warp[8 * i + j].row, 16, "ldmatrix");
        memcpy(m[j], warp[8 * i + j].row, 16);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const unsigned low = trans ? m[2 * t][g] : m[g][2 * t];
        const unsigned high = trans ? m[2 * t + 1][g] : m[g][2 * t + 1];
        warp[lane].r[i] = low | high << 16;
      }
    }
  });
}

struct Copy {
  void* to;
  const void* from;
  int bytes, from_bytes, group;
};
struct Copies {
  std::vector<Copy> under_way;
  int group = 0;
};
inline Copies copies_of[1024];

// This thread's copies; a block that starts forgets those of the one before.
inline Copies& copies() {
  static const char key = 0;
  unsigned char& started = *static_cast<unsigned char*>(shared_array(&key, 1));
  if (started != 1) {
    for (Copies& c : copies_of) c.under_way.clear(), c.group = 0;
    started = 1;
  }
  return copies_of[thread_index()];
}

inline void land(Copies& c, int before) {
  size_t kept = 0;
  for (const Copy& copy : c.under_way) {
    if (copy.group >= before) {
      c.under_way[kept++] = copy;
      continue;
    }
    memcpy(copy.to, copy.from, size_t(copy.from_bytes));
    memset(static_cast<char*>(copy.to) + copy.from_bytes, 0, size_t(copy.bytes - copy.from_bytes));
  }
  c.under_way.resize(kept);
}

}  // namespace cuda_emulator

namespace hexad {
namespace cuda {

#define HEXAD_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <class T>
void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, HEXAD_WHERE) {
  cuda_emulator::MatrixLane mine;
  mine.kind = std::is_same<T, bf16>::value ? "mma bf16" : "mma f16";
  mine.c = c, mine.a = a, mine.b[0] = b0, mine.b[1] = b1;
  cuda_emulator::together(mine, file, line, [](cuda_emulator::MatrixLane* warp) {
    const auto low = [](unsigned x) { return to_float(T{uint16_t(x)}); };
    const auto high = [](unsigned x) { return to_float(T{uint16_t(x >> 16)}); };
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i & 1), col = 2 * t + 8 * (i >> 1);
        a[row][col] = low(warp[lane].a[i]), a[row][col + 1] = high(warp[lane].a[i]);
      }
      for (int i = 0; i < 2; ++i) {
        b[2 * t + 8 * i][g] = low(warp[lane].b[i]);
        b[2 * t + 8 * i + 1][g] = high(warp[lane].b[i]);
      }
    }
    for (int half = 0; half < 2; ++half)
      for (int g = 0; g < 8; ++g) {
        float sums[8];
        for (int n = 0; n < 8; ++n) sums[n] = warp[4 * g + n / 2].c[2 * half + n % 2];
        for (int k = 0; k < 16; ++k)
          for (int n = 0; n < 8; ++n) sums[n] += a[g + 8 * half][k] * b[k][n];
        for (int n = 0; n < 8; ++n) warp[4 * g + n / 2].c[2 * half + n % 2] = sums[n];
      }
  });
}

using SharedAt = const char*;
inline SharedAt shared_at(const void* p) {
  return static_cast<SharedAt>(p);
}

#define HEXAD_LDMATRIX(name, count, trans)                                           \
  inline void name(unsigned (&r)[count], SharedAt row, int bytes = 0, HEXAD_WHERE) { \
    cuda_emulator::ldmatrix(r, count, trans, row + bytes, #name, file, line);        \
  }
HEXAD_LDMATRIX(ldmatrix_x1, 1, false)
HEXAD_LDMATRIX(ldmatrix_x1_trans, 1, true)
HEXAD_LDMATRIX(ldmatrix_x2, 2, false)
HEXAD_LDMATRIX(ldmatrix_x2_trans, 2, true)
HEXAD_LDMATRIX(ldmatrix_x4, 4, false)
HEXAD_LDMATRIX(ldmatrix_x4_trans, 4, true)
#undef HEXAD_LDMATRIX
#undef HEXAD_WHERE

template <int kBytes>
void cp_async(void* to, const void* from, int from_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "4, 8 or 16 bytes");
  cuda_emulator::require_aligned(to, kBytes, "cp.async's place");
  cuda_emulator::require_aligned(from, kBytes, "cp.async's source");
  const cuda_emulator::Uninterrupted whole;
  cuda_emulator::Copies& c = cuda_emulator::copies();
  c.under_way.push_back({to, from, kBytes, from_bytes, c.group});
  memset(to, 0xff, kBytes);
}
inline void cp_async_commit() {
  const cuda_emulator::Uninterrupted whole;
  ++cuda_emulator::copies().group;
}
template <int kPending>
void cp_async_wait() {
  const cuda_emulator::Uninterrupted whole;
  cuda_emulator::Copies& c = cuda_emulator::copies();
  cuda_emulator::land(c, c.group - kPending);
}

inline void keep_order() {}
inline float exp2_fast(float x) {
  return std::exp2(x);
}
inline unsigned pack(bf16, float low, float high) {
  return __float2bfloat16_rn(low).bits | unsigned(__float2bfloat16_rn(high).bits) << 16;
}
inline unsigned pack(f16, float low, float high) {
  return __float2half_rn(low).bits | unsigned(__float2half_rn(high).bits) << 16;
}

}  // namespace cuda
}  // namespace hexad
