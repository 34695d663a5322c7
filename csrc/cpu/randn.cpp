// Counter-based standard normals: any element of any row at any time.
#include "op/randn.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/philox.h"

namespace hexad {
namespace {

constexpr int kBlocks = 16, kElements = 4 * kBlocks;

// Elements [first, first + 64) of a row; first is a multiple of 4.
void normals(uint64_t seed, uint64_t offset, int64_t first, float* z) {
  uint32_t c[4][kBlocks];
  for (int i = 0; i < kBlocks; ++i) {
    const uint64_t block = uint64_t(first / 4 + i);
    c[0][i] = uint32_t(block);
    c[1][i] = uint32_t(block >> 32);
    c[2][i] = uint32_t(offset);
    c[3][i] = uint32_t(offset >> 32);
  }
  philox(c, seed);
  float planes[4][kBlocks];
  for (int i = 0; i < kBlocks; ++i) box_muller(c[0][i], c[1][i], planes[0][i], planes[1][i]);
  for (int i = 0; i < kBlocks; ++i) box_muller(c[2][i], c[3][i], planes[2][i], planes[3][i]);
  for (int i = 0; i < kBlocks; ++i)
    for (int j = 0; j < 4; ++j) z[4 * i + j] = planes[j][i];
}

}  // namespace

namespace HEXAD_ISA {

void randn(const RandnArgs& a) {
  const int64_t pieces = (a.row + kElements - 1) / kElements;
  parallel_for(a.batch * pieces, 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / pieces, at = i % pieces * kElements;
      float z[kElements];
      normals(uint64_t(a.seeds[b]), uint64_t(a.offset), at, z);
      std::copy_n(z, std::min<int64_t>(a.row - at, kElements), a.out + b * a.row + at);
    }
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
