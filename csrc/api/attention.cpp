#include "op/attention.h"

#include "api/heads.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_attention(const hexad_tensor* q, const hexad_tensor* k,
                                        const hexad_tensor* v, const hexad_tensor* mask,
                                        const hexad_tensor* alibi_slopes, const hexad_tensor* sinks,
                                        hexad_tensor* out, hexad_tensor* lse, int32_t causal,
                                        int64_t left, int64_t right, float softcap, float scale,
                                        hexad_stream stream) {
  return guarded([&] {
    const hexad_tensor* tensors[] = {q, k, v, out};
    const char* names[] = {"q", "k", "v", "out"};
    for (int i = 0; i < 4; ++i) require_rank(tensors[i], names[i], 4);
    const DType dtype = require_floats(tensors, names, 4, true);
    require_rank(lse, "lse", 3);
    require_dtype(*lse, "lse", DType::f32);
    require_device(*lse, "lse", *q);
    for (int i = 0; i < 3; ++i) {
      require_size(*out, "out", i, q->shape[i]);
      require_size(*lse, "lse", i, q->shape[i]);
      require_size(*v, "v", i, k->shape[i]);
    }
    require_size(*k, "k", 0, q->shape[0]);
    require_size(*k, "k", 3, q->shape[3]);
    require_size(*out, "out", 3, v->shape[3]);
    require_heads(q->shape[1], k->shape[1], q->shape[3], v->shape[3]);
    HEXAD_REQUIRE(causal >= 0 && causal <= 2, "causal: is %d, wants 0, 1 or 2", causal);
    require_distinct(*out, "out");
    require_distinct(*lse, "lse");
    left = reach(left), right = reach(right);
    AttentionArgs args{};
    args.q = data<void>(*q), args.k = data<void>(*k), args.v = data<void>(*v);
    args.out = data<void>(*out), args.lse = data<float>(*lse);
    args.slopes = per_head(alibi_slopes, "alibi_slopes", q->shape[1], *q);
    args.sinks = per_head(sinks, "sinks", q->shape[1], *q);
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16;
    args.batch = q->shape[0], args.heads = q->shape[1], args.kv_heads = k->shape[1];
    args.rows = q->shape[2], args.keys = k->shape[2];
    args.head_dim = q->shape[3], args.value_dim = v->shape[3];
    strides_of(*q, 3, args.q_stride), strides_of(*k, 3, args.k_stride);
    strides_of(*v, 3, args.v_stride), strides_of(*out, 3, args.out_stride);
    strides_of(*lse, 3, args.lse_stride);
    if (mask) {
      require_rank(mask, "mask", 4);
      require_device(*mask, "mask", *q);
      const DType kind = dtype_of(*mask);
      HEXAD_REQUIRE(kind == DType::boolean || kind == DType::f32 || kind == DType::bf16 ||
                        (kind == DType::f16 && args.f16),
                    "mask: is %s, wants bool, float32 or bfloat16", name_of(kind));
      args.mask = data<void>(*mask);
      args.mask_kind = kind == DType::boolean ? 0
                       : kind == DType::f32   ? 1
                       : kind == DType::bf16  ? 2
                                              : 3;
      const int64_t want[] = {args.batch, args.heads, args.rows, args.keys};
      for (int i = 0; i < 4; ++i) {
        HEXAD_REQUIRE(mask->shape[i] == 1 || mask->shape[i] == want[i],
                      "mask: dimension %d is %lld, wants 1 or %lld", i, (long long)mask->shape[i],
                      (long long)want[i]);
        args.mask_stride[i] = mask->shape[i] == 1 ? 0 : stride(*mask, i);
      }
    }
    args.offset = causal == 2 ? 0 : args.keys - args.rows;
    args.left = left, args.right = causal ? 0 : right;
    args.softcap = softcap, args.scale = scale;
    if (on_cuda(*q)) return cuda::attention(args, stream);
    cpu().attention(args);
  });
}
