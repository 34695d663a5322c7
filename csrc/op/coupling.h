#pragma once

#include <cstdint>

namespace hexad {

// How a row of x is split and what becomes of its active half.
struct CouplingMap {
  int64_t batch, row;            // row = channels * spatial, contiguous
  int64_t active_begin, active;  // of a row; all of it for a checkerboard
  bool checkerboard, flip;
  int64_t height, width;
  bool inverse;
  int scale_map;
  float clamp;
  bool bf16;
};

// A CUDA block takes so many active elements of a row; a row has at least one such piece.
constexpr int64_t kCouplingPiece = 4096;
inline int64_t coupling_pieces(const CouplingMap& a) {
  return a.active > kCouplingPiece ? (a.active + kCouplingPiece - 1) / kCouplingPiece : 1;
}

struct CouplingArgs : CouplingMap {
  const void* x;
  const void* shift;
  const void* log_scale;  // null: additive
  void* y;
  float* log_det;
  int64_t x_stride, y_stride, shift_stride, scale_stride;  // from one batch row to the next
  double* partials;   // CUDA, rows of more than one piece: a sum for each piece of each row,
  int32_t* counters;  // and a number for each row, 0 before and after
};

}  // namespace hexad
