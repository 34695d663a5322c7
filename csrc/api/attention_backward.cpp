#include "op/attention_backward.h"

#include <algorithm>

#include "api/heads.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_attention_backward(
    const hexad_tensor* grad_out, const hexad_tensor* q, const hexad_tensor* k,
    const hexad_tensor* v, const hexad_tensor* out, const hexad_tensor* lse,
    const hexad_tensor* grad_lse, const hexad_tensor* mask, hexad_tensor* grad_q,
    hexad_tensor* grad_k, hexad_tensor* grad_v, hexad_tensor* workspace, int64_t slots,
    int32_t split, int32_t causal, int64_t left, int64_t right, float softcap, float scale,
    hexad_stream stream) {
  return guarded([&] {
    const hexad_tensor* tensors[] = {q, k, v, grad_out, out, grad_q, grad_k, grad_v};
    const char* names[] = {"q", "k", "v", "grad_out", "out", "grad_q", "grad_k", "grad_v"};
    for (int i = 0; i < 8; ++i) require_rank(tensors[i], names[i], 4);
    const DType dtype = require_floats(tensors, names, 8, true);
    const bool cuda = on_cuda(*q);
    if (dtype == DType::f16 && !cuda)
      fail(HEXAD_UNSUPPORTED, "q: is float16, which attention_backward has on CUDA only");
    const hexad_tensor* statistics[] = {lse, grad_lse};
    const char* statistic_names[] = {"lse", "grad_lse"};
    for (int s = 0; s < 2; ++s) {
      const hexad_tensor* t = statistics[s];
      if (s == 1 && !t) continue;
      require_rank(t, statistic_names[s], 3);
      require_dtype(*t, statistic_names[s], DType::f32);
      require_device(*t, statistic_names[s], *q);
      for (int i = 0; i < 3; ++i) require_size(*t, statistic_names[s], i, q->shape[i]);
    }
    for (int i = 0; i < 3; ++i) {
      require_size(*grad_out, "grad_out", i, q->shape[i]);
      require_size(*v, "v", i, k->shape[i]);
    }
    require_size(*k, "k", 0, q->shape[0]);
    require_size(*k, "k", 3, q->shape[3]);
    require_size(*grad_out, "grad_out", 3, v->shape[3]);
    require_shape(*out, "out", *grad_out);
    require_shape(*grad_q, "grad_q", *q);
    require_shape(*grad_k, "grad_k", *k);
    require_shape(*grad_v, "grad_v", *v);
    require_heads(q->shape[1], k->shape[1], q->shape[3], v->shape[3]);
    HEXAD_REQUIRE(causal >= 0 && causal <= 2, "causal: is %d, wants 0, 1 or 2", causal);
    for (int i = 5; i < 8; ++i) require_distinct(*tensors[i], names[i]);
    AttentionBackwardArgs args{};
    args.grad_out = data<void>(*grad_out), args.q = data<void>(*q), args.k = data<void>(*k);
    args.v = data<void>(*v), args.out = data<void>(*out), args.lse = data<float>(*lse);
    args.grad_q = data<void>(*grad_q), args.grad_k = data<void>(*grad_k);
    args.grad_v = data<void>(*grad_v);
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16, args.split = split != 0;
    args.batch = q->shape[0], args.heads = q->shape[1], args.kv_heads = k->shape[1];
    args.rows = q->shape[2], args.keys = k->shape[2];
    args.head_dim = q->shape[3], args.value_dim = v->shape[3];
    strides_of(*grad_out, 3, args.grad_out_stride), strides_of(*q, 3, args.q_stride);
    strides_of(*k, 3, args.k_stride), strides_of(*v, 3, args.v_stride);
    strides_of(*out, 3, args.out_stride), strides_of(*lse, 3, args.lse_stride);
    strides_of(*grad_q, 3, args.grad_q_stride), strides_of(*grad_k, 3, args.grad_k_stride);
    strides_of(*grad_v, 3, args.grad_v_stride);
    if (grad_lse) {
      args.grad_lse = data<float>(*grad_lse);
      strides_of(*grad_lse, 3, args.grad_lse_stride);
    }
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
    require_rank(workspace, "workspace", 1);
    require_dtype(*workspace, "workspace", DType::f32);
    require_device(*workspace, "workspace", *q);
    require_contiguous(*workspace, "workspace");
    HEXAD_REQUIRE(
        args.rows <= kMostElements / (kMaxHeadDim + 16) / std::max<int64_t>(1, args.heads),
        "q: has %lld rows of %lld heads, more than a workspace can serve", (long long)args.rows,
        (long long)args.heads);
    args.room = cuda ? 0
                     : backward_room(args.heads / args.kv_heads, args.rows, args.head_dim,
                                     args.value_dim, args.split);
    const int64_t rest = args.batch * args.heads * args.rows;
    HEXAD_REQUIRE((cuda || (slots >= 1 && slots <= workspace->shape[0] / args.room)) &&
                      (cuda ? 0 : slots * args.room) + rest <= workspace->shape[0],
                  "workspace: has %lld floats, wants %lld in each of %lld slots and %lld more",
                  (long long)workspace->shape[0], (long long)args.room, (long long)slots,
                  (long long)rest);
    args.workspace = data<float>(*workspace), args.slots = slots;
    args.offset = causal == 2 ? 0 : args.keys - args.rows;
    args.left = reach(left), args.right = causal ? 0 : reach(right);
    args.softcap = softcap, args.scale = scale;
    if (cuda) return cuda::attention_backward(args, stream);
    cpu().attention_backward(args);
  });
}
