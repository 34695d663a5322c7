#pragma once

#include <cstdint>

namespace hexad {

// Strides count elements; the last dimension of q, k, v, out and the gradients has stride 1.
struct AttentionBackwardArgs {
  const void *grad_out, *q, *k, *v, *out;
  const float *lse, *grad_lse;  // grad_lse null: zero
  const void* mask;             // null: none
  void *grad_q, *grad_k, *grad_v;
  float* workspace;  // `slots` of `room` floats (CUDA: none), then batch * heads * rows more
  int64_t slots, room;
  bool bf16, f16, split;  // f16: CUDA only
  int mask_kind;          // 0 bool, 1 float32, 2 bfloat16, 3 float16
  int64_t batch, heads, kv_heads, rows, keys, head_dim, value_dim;
  // batch, head, row
  int64_t grad_out_stride[3], q_stride[3], k_stride[3], v_stride[3], out_stride[3], lse_stride[3];
  int64_t grad_lse_stride[3], grad_q_stride[3], grad_k_stride[3], grad_v_stride[3];
  int64_t mask_stride[4];       // batch, head, row, key; 0 where it broadcasts
  int64_t offset, left, right;  // row i sees keys i + offset - left .. i + offset + right; -1: all
  float softcap;                // 0: none
  float scale;
};

// Floats of scratch that a slot wants: see cpu/attention_backward.cpp.
constexpr int64_t backward_padded(int64_t n) {
  return (n + 31) / 32 * 32;
}
inline int64_t backward_room(int64_t group, int64_t rows, int64_t head_dim, int64_t value_dim,
                             bool split) {
  const int64_t d = backward_padded(head_dim), dv = backward_padded(value_dim);
  return 128 * (6 * (d + dv) + 1024) + (split ? 256 : group * backward_padded(rows)) * d;
}

}  // namespace hexad
