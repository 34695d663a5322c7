#pragma once

#include <cstdint>

namespace hexad {

// Strides count elements; the last dimension of q, k, v, out has stride 1.
struct AttentionArgs {
  const void *q, *k, *v;
  const void* mask;  // null: none
  void* out;
  float* lse;
  const float *slopes, *sinks;  // a query head; null: none
  bool bf16, f16;
  int mask_kind;  // 0 bool, 1 float32, 2 bfloat16, 3 float16
  int64_t batch, heads, kv_heads, rows, keys, head_dim, value_dim;
  int64_t q_stride[3], k_stride[3], v_stride[3], out_stride[3], lse_stride[3];  // batch, head, row
  int64_t mask_stride[4];       // batch, head, row, key; 0 where it broadcasts
  int64_t offset, left, right;  // row i sees keys i + offset - left .. i + offset + right; -1: all
  float softcap;                // 0: none
  float scale;
};

}  // namespace hexad
