// Counter-based standard normals: any element of any row at any time.
#include "op/randn.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/philox.h"
#include "cpu/philox_lanes.h"

namespace hexad {
namespace {

// The normals of 16 blocks, four each; their counters (but for the offset) and keys are words.
void normals(const int32_t (&counter)[2][kLanes], uint64_t offset, const int32_t (&key)[2][kLanes],
             float* z) {
  vi c[4] = {load(counter[0]), load(counter[1]), set1i(int32_t(uint32_t(offset))),
             set1i(int32_t(uint32_t(offset >> 32)))};
  philox(c, load(key[0]), load(key[1]));
  int32_t word[4][kLanes];
  for (int j = 0; j < 4; ++j) store(word[j], c[j]);
  float planes[4][kLanes];
  for (int j = 0; j < 4; j += 2)
    for (int i = 0; i < kLanes; ++i)
      box_muller(uint32_t(word[j][i]), uint32_t(word[j + 1][i]), planes[j][i], planes[j + 1][i]);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) z[4 * i + j] = planes[j][i];
}

}  // namespace

namespace HEXAD_ISA {

// The blocks of all rows follow one another, so that short rows share a vector.
void randn(const RandnArgs& a) {
  const int64_t of_row = (a.row + 3) / 4, blocks = a.batch * of_row;
  parallel_for((blocks + kLanes - 1) / kLanes, 32, [&](int64_t begin, int64_t end) {
    int64_t b = begin * kLanes / of_row, block = begin * kLanes % of_row;
    for (int64_t at = begin * kLanes; at < std::min(blocks, end * kLanes); at += kLanes) {
      const int64_t row = b, first = block;
      int32_t counter[2][kLanes], key[2][kLanes];
      const auto lane = [&](int i, uint64_t number, uint64_t seed) {
        counter[0][i] = int32_t(number), counter[1][i] = int32_t(number >> 32);
        key[0][i] = int32_t(seed), key[1][i] = int32_t(seed >> 32);
      };
      if (block + kLanes < of_row) {
        const uint64_t seed = uint64_t(a.seeds[b]);
        for (int i = 0; i < kLanes; ++i) lane(i, uint64_t(block + i), seed);
        block += kLanes;
      } else {
        for (int i = 0; i < kLanes; ++i) {
          lane(i, uint64_t(block), uint64_t(a.seeds[std::min(b, a.batch - 1)]));
          if (++block == of_row) ++b, block = 0;
        }
      }
      float z[4 * kLanes];
      normals(counter, uint64_t(a.offset), key, z);
      if (a.row - 4 * first >= 4 * kLanes) {
        std::copy_n(z, 4 * kLanes, a.out + row * a.row + 4 * first);
        continue;
      }
      int64_t here = row, place = 4 * first;
      for (int i = 0; i < kLanes && here < a.batch; ++i) {
        const int64_t n = std::min<int64_t>(4, a.row - place);
        for (int64_t j = 0; j < n; ++j) a.out[here * a.row + place + j] = z[4 * i + j];
        place += 4;
        if (place >= a.row) ++here, place = 0;
      }
    }
  });
}

}  // namespace HEXAD_ISA
}  // namespace hexad
