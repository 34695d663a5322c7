#pragma once

#include <cstdint>

namespace hexad {

struct DecodeArgs {
  const void *q, *k, *v;
  void* out;
  float* lse;
  const int32_t* lengths;
  const int32_t* table;            // null: sequence b owns page b
  const float *k_scale, *v_scale;  // of an int8 cache, else null
  const float *slopes, *sinks;     // of a query head, or null
  bool bf16, int8;                 // of q and out; of the cache
  int64_t batch, heads, kv_heads, page, head_dim, value_dim;
  int64_t q_stride[2], out_stride[2], lse_stride[2];  // sequence, head
  int64_t k_stride[3], v_stride[3];                   // page, head, slot
  int64_t k_scale_stride[3], v_scale_stride[3];
  int64_t lengths_stride, table_stride[2], slopes_stride, sinks_stride;
  int64_t left;  // the newest key and `left` before it; -1: all
  float softcap;
  float scale;
};

}  // namespace hexad
