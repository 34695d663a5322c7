#pragma once

#include <cstdint>

namespace hexad {

struct AttentionVarlenArgs {
  const void *q, *k, *v;
  void* out;
  float* lse;
  const float *slopes, *sinks;  // a query head; null: none
  const int32_t *cu_q, *cu_k;   // sequences + 1
  bool bf16, f16;
  int64_t sequences, rows, keys, heads, kv_heads, head_dim, value_dim;  // rows, keys: of all
  int64_t q_stride[2], k_stride[2], v_stride[2], out_stride[2];         // token, head
  int64_t lse_stride[2];                                                // head, token
  bool upper_left;  // row i sits at i, else at i + keys - rows of its sequence
  int64_t left, right;
  float softcap;
  float scale;
};

}  // namespace hexad
