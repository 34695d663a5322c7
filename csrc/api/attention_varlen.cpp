#include "op/attention_varlen.h"

#include "api/heads.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

namespace {

// Starts of packed sequences: from 0, never down, to the number of tokens.
void require_starts(const hexad_tensor& t, const char* name, int64_t tokens) {
  const int32_t* at = data<int32_t>(t);
  const int64_t n = t.shape[0];
  HEXAD_REQUIRE(at[0] == 0, "%s: starts with %d, wants 0", name, at[0]);
  for (int64_t i = 1; i < n; ++i)
    HEXAD_REQUIRE(at[i] >= at[i - 1], "%s: falls from %d to %d at %lld", name, at[i - 1], at[i],
                  (long long)i);
  HEXAD_REQUIRE(at[n - 1] == tokens, "%s: ends with %d, wants the %lld tokens", name, at[n - 1],
                (long long)tokens);
}

}  // namespace

extern "C" hexad_status hexad_attention_varlen(
    const hexad_tensor* q, const hexad_tensor* k, const hexad_tensor* v, const hexad_tensor* cu_q,
    const hexad_tensor* cu_k, const hexad_tensor* alibi_slopes, const hexad_tensor* sinks,
    hexad_tensor* out, hexad_tensor* lse, int32_t causal, int64_t left, int64_t right,
    float softcap, float scale, hexad_stream stream) {
  return guarded([&] {
    const hexad_tensor* tensors[] = {q, k, v, out};
    const char* names[] = {"q", "k", "v", "out"};
    for (int i = 0; i < 4; ++i) require_rank(tensors[i], names[i], 3);
    const DType dtype = require_floats(tensors, names, 4, true);
    require_rank(lse, "lse", 2);
    require_dtype(*lse, "lse", DType::f32);
    require_device(*lse, "lse", *q);
    require_size(*lse, "lse", 0, q->shape[1]);
    require_size(*lse, "lse", 1, q->shape[0]);
    for (int i = 0; i < 2; ++i) {
      require_size(*out, "out", i, q->shape[i]);
      require_size(*v, "v", i, k->shape[i]);
    }
    require_size(*k, "k", 2, q->shape[2]);
    require_size(*out, "out", 2, v->shape[2]);
    require_heads(q->shape[1], k->shape[1], q->shape[2], v->shape[2]);
    HEXAD_REQUIRE(causal >= 0 && causal <= 2, "causal: is %d, wants 0, 1 or 2", causal);
    require_index(cu_q, "cu_seqlens_q", 1, *q);
    require_index(cu_k, "cu_seqlens_k", 1, *q);
    require_rows(*cu_q, "cu_seqlens_q");
    require_rows(*cu_k, "cu_seqlens_k");
    HEXAD_REQUIRE(cu_q->shape[0] > 0, "cu_seqlens_q: is empty, wants at least one entry");
    require_size(*cu_k, "cu_seqlens_k", 0, cu_q->shape[0]);
    // Elsewhere the values are the caller's care: reading them would wait for the device.
    if (q->device_type == HEXAD_CPU) {
      require_starts(*cu_q, "cu_seqlens_q", q->shape[0]);
      require_starts(*cu_k, "cu_seqlens_k", k->shape[0]);
    }
    require_distinct(*out, "out");
    require_distinct(*lse, "lse");
    left = reach(left), right = reach(right);
    AttentionVarlenArgs args{};
    args.q = data<void>(*q), args.k = data<void>(*k), args.v = data<void>(*v);
    args.out = data<void>(*out), args.lse = data<float>(*lse);
    args.cu_q = data<int32_t>(*cu_q), args.cu_k = data<int32_t>(*cu_k);
    args.slopes = per_head(alibi_slopes, "alibi_slopes", q->shape[1], *q);
    args.sinks = per_head(sinks, "sinks", q->shape[1], *q);
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16;
    args.sequences = cu_q->shape[0] - 1, args.rows = q->shape[0], args.keys = k->shape[0];
    args.heads = q->shape[1], args.kv_heads = k->shape[1];
    args.head_dim = q->shape[2], args.value_dim = v->shape[2];
    strides_of(*q, 2, args.q_stride), strides_of(*k, 2, args.k_stride);
    strides_of(*v, 2, args.v_stride), strides_of(*out, 2, args.out_stride);
    strides_of(*lse, 2, args.lse_stride);
    args.upper_left = causal == 2;
    args.left = left, args.right = causal ? 0 : right;
    args.softcap = softcap, args.scale = scale;
    if (on_cuda(*q)) return cuda::attention_varlen(args, stream);
    cpu().attention_varlen(args);
  });
}
