#pragma once

#include <cstdint>

namespace hexad {

struct AppendKvArgs {
  const void *k, *v;
  void *k_cache, *v_cache;
  const int32_t* lengths;
  float *k_scale, *v_scale;     // of a quantised cache, else null
  const int32_t* table;         // null: sequence b owns page b
  const void *cos, *sin;        // float32; null: keys are not rotated
  bool bf16, f16, interleaved;  // bf16, f16: k and v
  bool tables_bf16;             // cos and sin are, on the CPU
  int float8;                   // the cache, on GPUs: 1 e4m3fn, 2 e5m2
  int64_t batch, kv_heads, rows, page, head_dim, value_dim;
  int64_t k_stride[3], v_stride[3];              // sequence, head, row
  int64_t k_cache_stride[3], v_cache_stride[3];  // page, head, slot
  int64_t k_scale_stride[3], v_scale_stride[3];
  int64_t cos_stride, sin_stride, lengths_stride, table_stride[2];
};

}  // namespace hexad
