// What the kernels of attention and attention_varlen share: which rows and keys a block has, which
// of them see each other, and what a score is before the softmax.
#pragma once

#include "cuda/common.cuh"
#include "op/attention.h"

namespace hexad {
namespace cuda {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kMostFloat = 3.4028234663852886e38f;
// log(2) in two parts, so that a maximum kept in powers of two comes back without an error of its
// own.
constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723e-06f;

// Packed sequences (cu_q, cu_k not null) have no batch strides; a.batch counts the sequences,
// a.rows all of their rows.
struct AttendTask {
  AttentionArgs a;
  const int32_t *cu_q, *cu_k;
  bool upper_left;  // of packed sequences, whose offsets the kernel works out
  int pack;         // query heads of one key head whose rows share a block, head fastest
  bool vector;      // every row of q, k, v starts at a multiple of 16 bytes
  bool vector_out;
  bool mask_pairs;  // a bool mask may be read two keys at a time
};

constexpr int64_t kMostPositions = 1 << 29;  // below it, positions and their sums fit int32

// A block's part: packed rows first, first + 1, ... of `rows` (positions x pack) of one sequence.
struct AttendPlace {
  int b;     // for batch strides
  int head;  // the first of its `pack` heads
  int first, rows, keys, offset;
  int q_start, k_start;  // the sequence's first row and key
};

// False: the block has nothing to do (first and rows are set). Blocks of one sequence lie together,
// so that its keys stay in cache, the latest rows, which see most under causality, first. A packed
// sequence n owns the slots from start / block_rows + n: room for its last, broken block, known
// without reading a length.
__device__ inline bool place_block(const AttendTask& t, int block_rows, AttendPlace& p) {
  const unsigned groups = unsigned(t.a.heads) / unsigned(t.pack);
  if (!t.cu_q) {
    p.rows = int(t.a.rows) * t.pack, p.keys = int(t.a.keys), p.offset = int(t.a.offset);
    const unsigned tiles = unsigned(p.rows + block_rows - 1) / unsigned(block_rows);
    const unsigned sequence = blockIdx.x / tiles;
    p.first = int(tiles - 1 - blockIdx.x % tiles) * block_rows;
    p.b = int(sequence / groups), p.head = int(sequence % groups) * t.pack;
    p.q_start = p.k_start = 0;
    return true;
  }
  const unsigned slots = gridDim.x / groups, slot = blockIdx.x % slots;
  p.b = 0, p.head = int(blockIdx.x / slots) * t.pack;
  int low = 0, high = int(t.a.batch);  // the last sequence whose slots start at or before this one
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    const int64_t start = int64_t(t.cu_q[middle]) * t.pack / block_rows + middle;
    if (start <= slot)
      low = middle;
    else
      high = middle;
  }
  p.q_start = t.cu_q[low], p.k_start = t.cu_k[low];
  const int rows = t.cu_q[low + 1] - p.q_start;
  p.rows = rows * t.pack, p.keys = t.cu_k[low + 1] - p.k_start;
  p.offset = t.upper_left ? 0 : p.keys - rows;
  p.first = int(slot - (int64_t(p.q_start) * t.pack / block_rows + low)) * block_rows;
  return p.first < p.rows;
}

// How many blocks place_block() is asked from.
inline int64_t attend_blocks(const AttendTask& t, int block_rows) {
  const int64_t groups = t.a.heads / t.pack, rows = t.a.rows * t.pack;
  if (t.cu_q) return (rows / block_rows + t.a.batch) * groups;
  return (rows + block_rows - 1) / block_rows * t.a.batch * groups;
}

// The keys that some row from `first` to `last` (positions) may see, from a multiple of `step`.
__device__ inline void key_range(const AttentionArgs& a, int keys, int first, int last, int step,
                                 int& begin, int& end) {
  begin = a.left >= 0 && first - int(a.left) > 0 ? (first - int(a.left)) / step * step : 0;
  end = a.right >= 0 && last + int(a.right) + 1 < keys ? last + int(a.right) + 1 : keys;
}

__device__ inline float mask_bias(const AttentionArgs& a, int64_t at) {
  if (a.mask_kind == 1) return static_cast<const float*>(a.mask)[at];
  const bf16 bias = static_cast<const bf16*>(a.mask)[at];
  f16 other;
  memcpy(&other, &bias, sizeof other);
  return a.mask_kind == 2 ? to_float(bias) : to_float(other);
}

template <class T>
__device__ inline const T* row_of(const void* base, const int64_t (&stride)[3], int64_t b,
                                  int64_t head, int64_t row) {
  return static_cast<const T*>(base) + b * stride[0] + head * stride[1] + row * stride[2];
}

// Launches the kernels below (sm80_attention.cuh, plain_attention.cuh) on a task without its
// `pack`, alignments and mask_pairs.
void attend(const char* op, AttendTask task, hexad_stream stream);
void sm80_attend(const char* op, AttendTask task, bf16, hexad_stream stream);
void sm80_attend(const char* op, AttendTask task, f16, hexad_stream stream);
void plain_attend(const char* op, const AttendTask& task, hexad_stream stream);

}  // namespace cuda
}  // namespace hexad
