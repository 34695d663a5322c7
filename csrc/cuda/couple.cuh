// What forward and backward of coupling share: the scale maps and the cut of a row into pieces, a
// block each.
#pragma once

#include "cuda/packs.cuh"
#include "op/coupling.h"

namespace hexad {
namespace cuda {
namespace {

enum Map { kExp, kTanh, kSigmoid, kAdditive };

constexpr int kThreads = 256;

// e^s (or e^-s), s, and ds/dr of a raw scale.
struct Scale {
  float factor, s, slope;
};
template <int M>
__device__ inline Scale scale_of(float r, float clamp, bool inverse) {
  if constexpr (M == kAdditive) return {1.f, 0.f, 0.f};
  if constexpr (M == kSigmoid) {
    const float z = r + 2.f, e = expf(-fabsf(z)), u = 1.f + e;
    const float top = z < 0.f ? e : 1.f, rest = z < 0.f ? 1.f : e;
    return {inverse ? u / top : top / u, fminf(z, 0.f) - log1pf(e), rest / u};
  }
  const float t = M == kTanh ? tanhf(r / clamp) : 0.f;
  const float s = M == kTanh ? clamp * t : r;
  return {expf(inverse ? -s : s), s, fmaf(-t, t, 1.f)};
}

// Which elements of a checkerboard move, stepping along a row from element i.
struct Parity {
  int64_t width, height, w, h;
  int odd;

  __device__ Parity(const CouplingMap& a, int64_t i)
      : width(a.width), height(a.height), odd(a.flip ? 0 : 1) {
    if ((i | width | height) >> 32) {
      h = i / width;
      w = i - h * width;
      h %= height;
    } else {
      const uint32_t line = uint32_t(i) / uint32_t(width);
      w = uint32_t(i) - line * uint32_t(width);
      h = line % uint32_t(height);
    }
  }
  __device__ bool active() const { return int((h + w) & 1) == odd; }
  __device__ void next() {
    if (++w < width) return;
    w = 0;
    if (++h == height) h = 0;
  }
};

// Rows are cut at places that only their own size decides. A block takes a piece of the active
// elements, or of all elements of a checkerboard, and an equal share of the passive half.
struct Cut {
  int64_t pieces, passive, passive_begin, share;

  explicit Cut(const CouplingMap& a)
      : pieces(coupling_pieces(a)),
        passive(a.row - a.active),
        passive_begin(a.active_begin ? 0 : a.active) {
    share = ((passive + pieces - 1) / pieces + 7) / 8 * 8;
  }
  // Whether the packs of a row that begins on one do so too.
  bool in_packs(const CouplingMap& a) const {
    const int64_t pack = a.bf16 ? 8 : 4;
    return a.active_begin % pack == 0 && passive_begin % pack == 0;
  }
};

struct Piece {
  int64_t row, index, begin, count;  // of the active elements
  int64_t passive_begin, passive_count;

  __device__ Piece(const CouplingMap& a, const Cut& cut)
      : row(blockIdx.x / cut.pieces),
        index(blockIdx.x - row * cut.pieces),
        begin(index * kCouplingPiece) {
    count = least(kCouplingPiece, a.active - begin);
    const int64_t first = least(cut.passive, index * cut.share);
    passive_begin = cut.passive_begin + first;
    passive_count = least(cut.share, cut.passive - first);
  }
  __device__ static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

// The map as a constant: f(std::integral_constant<int, M>).
template <class F>
void with_map(const CouplingMap& a, bool additive, const F& f) {
  if (additive) return f(std::integral_constant<int, kAdditive>{});
  if (a.scale_map == kTanh) return f(std::integral_constant<int, kTanh>{});
  if (a.scale_map == kSigmoid) return f(std::integral_constant<int, kSigmoid>{});
  f(std::integral_constant<int, kExp>{});
}

}  // namespace
}  // namespace cuda
}  // namespace hexad
