#pragma once

#include <cstdint>

#include "anywhere.h"

namespace hexad {
namespace {

// A GPU's blocks share a row's keys in splits whose borders are the same for every row: short ones
// first, so that short rows have blocks enough, then longer ones, so that few are left to join.
constexpr int64_t kShortSplit = 512, kShortSplits = 16, kLongSplit = 2048;
constexpr int64_t kShortKeys = kShortSplit * kShortSplits;
constexpr int64_t kMostDecodeDim = 256;  // on CUDA

HEXAD_ANYWHERE int64_t split_begin(int64_t split) {
  return split <= kShortSplits ? split * kShortSplit
                               : kShortKeys + (split - kShortSplits) * kLongSplit;
}
HEXAD_ANYWHERE int64_t split_of(int64_t key) {
  return key < kShortKeys ? key / kShortSplit : kShortSplits + (key - kShortKeys) / kLongSplit;
}
// The most splits that a row in a cache of so many keys meets, `left` as in DecodeArgs.
HEXAD_ANYWHERE int64_t most_splits(int64_t capacity, int64_t left) {
  const int64_t all = capacity < 1 ? 1 : split_of(capacity - 1) + 1;
  const int64_t window = (left + kShortSplit - 1) / kShortSplit + 1;
  return left < 0 || window > all ? all : window;
}

}  // namespace

struct DecodeArgs {
  const void *q, *k, *v;
  void* out;
  float* lse;
  const int32_t* lengths;
  const int32_t* table;            // null: sequence b owns page b
  const float *k_scale, *v_scale;  // of a quantised cache, else null
  const float *slopes, *sinks;     // of a query head, or null
  bool bf16, f16, int8;            // of q and out; of the cache
  int float8;                      // of the cache, on GPUs: 1 e4m3fn, 2 e5m2
  int64_t batch, heads, kv_heads, page, head_dim, value_dim;
  int64_t capacity;  // keys that a row has room for
  float* workspace;  // of GPUs: (batch, heads, most_splits, value_dim + 2); null: one split
  int64_t q_stride[2], out_stride[2], lse_stride[2];  // sequence, head
  int64_t k_stride[3], v_stride[3];                   // page, head, slot
  int64_t k_scale_stride[3], v_scale_stride[3];
  int64_t lengths_stride, table_stride[2], slopes_stride, sinks_stride;
  int64_t left;  // the newest key and `left` before it; -1: all
  float softcap;
  float scale;
};

}  // namespace hexad
