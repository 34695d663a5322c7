// What csrc/cuda/ampere.cuh wraps, for the emulator.
#pragma once

#include <cstring>
#include <deque>
#include <vector>

#include "cuda/common.cuh"

namespace cuda_emulator {

struct Copy {
  void* to;
  const void* from;
  int bytes, size;
};

// A thread's copies under way, in groups; they land when they are waited for.
inline std::deque<std::vector<Copy>>& copies() {
  static std::deque<std::vector<Copy>> of[1024];
  auto& mine = of[threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)];
  if (mine.empty()) mine.emplace_back();
  return mine;
}

inline float product_element(const uint32_t word, int half, bool bf) {
  const uint16_t bits = uint16_t(word >> 16 * half);
  if (bf) return __bfloat162float(__nv_bfloat16{bits});
  return __half2float(__half{bits});
}

}  // namespace cuda_emulator

namespace hexad {
namespace cuda {

template <int kSize>
inline void cp_async(void* shared, const void* global, int bytes) {
  cuda_emulator::copies().back().push_back({shared, global, bytes, kSize});
}
inline void cp_async_commit() {
  cuda_emulator::copies().emplace_back();
}
template <int kPending>
inline void cp_async_wait() {
  auto& groups = cuda_emulator::copies();
  while (groups.size() > kPending + 1) {
    for (const auto& copy : groups.front()) {
      memset(copy.to, 0, size_t(copy.size));
      if (copy.bytes) memcpy(copy.to, copy.from, size_t(copy.bytes));
    }
    groups.pop_front();
  }
}

template <class T>
inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr bool bf = std::is_same<T, bf16>::value;
  const int lane = int(threadIdx.x) % 32, group = lane / 4, within = lane % 4;
  uint64_t row[2][4], column[2][4];
  for (int j = 0; j < 4; ++j) {
    row[0][j] = __shfl_sync(kFullWarp, uint64_t(a[0]) | uint64_t(a[2]) << 32, 4 * group + j);
    row[1][j] = __shfl_sync(kFullWarp, uint64_t(a[1]) | uint64_t(a[3]) << 32, 4 * group + j);
    for (int c = 0; c < 2; ++c)
      column[c][j] =
          __shfl_sync(kFullWarp, uint64_t(b[0]) | uint64_t(b[1]) << 32, 4 * (2 * within + c) + j);
  }
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 2; ++c) {
      float sum = d[2 * r + c];
      for (int part = 0; part < 2; ++part)
        for (int j = 0; j < 4; ++j)
          for (int half = 0; half < 2; ++half)
            sum += cuda_emulator::product_element(uint32_t(row[r][j] >> 32 * part), half, bf) *
                   cuda_emulator::product_element(uint32_t(column[c][j] >> 32 * part), half, bf);
      d[2 * r + c] = sum;
    }
}

}  // namespace cuda
}  // namespace hexad
