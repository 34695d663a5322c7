#include "op/decode.h"

#include "api/cache.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_decode(const hexad_tensor* q, const hexad_tensor* k_cache,
                                     const hexad_tensor* v_cache, const hexad_tensor* lengths,
                                     const hexad_tensor* block_table, const hexad_tensor* k_scale,
                                     const hexad_tensor* v_scale, const hexad_tensor* alibi_slopes,
                                     const hexad_tensor* sinks, hexad_tensor* out,
                                     hexad_tensor* lse, hexad_tensor* workspace, int64_t left,
                                     float softcap, float scale, hexad_stream stream) {
  return guarded([&] {
    require_rank(q, "q", 3);
    require_rank(k_cache, "k_cache", 4);
    require_rank(v_cache, "v_cache", 4);
    require_rank(lengths, "lengths", 1);
    require_rank(out, "out", 3);
    require_rank(lse, "lse", 2);
    const hexad_tensor* tensors[] = {q, out};
    const char* names[] = {"q", "out"};
    const DType dtype = require_floats(tensors, names, 2, on_cuda(*q));
    const DType kept = require_cache(*k_cache, *v_cache, k_scale, v_scale, *q);
    const int float8 = float8_kind(kept, on_cuda(*q), "decode");
    require_dtype(*lse, "lse", DType::f32);
    require_device(*lse, "lse", *q);
    for (int i = 0; i < 2; ++i) {
      require_size(*out, "out", i, q->shape[i]);
      require_size(*lse, "lse", i, q->shape[i]);
    }
    const hexad_tensor* per_head[] = {alibi_slopes, sinks};
    const char* per_head_names[] = {"alibi_slopes", "sinks"};
    for (int i = 0; i < 2; ++i) {
      if (!per_head[i]) continue;
      require_rank(per_head[i], per_head_names[i], 1);
      require_dtype(*per_head[i], per_head_names[i], DType::f32);
      require_device(*per_head[i], per_head_names[i], *q);
      require_size(*per_head[i], per_head_names[i], 0, q->shape[1]);
    }
    require_size(*k_cache, "k_cache", 3, q->shape[2]);
    require_size(*out, "out", 2, v_cache->shape[3]);
    require_heads(q->shape[1], k_cache->shape[1], q->shape[2], v_cache->shape[3]);
    require_distinct(*out, "out");
    require_distinct(*lse, "lse");
    left = reach(left);
    require_places(*k_cache, *lengths, block_table, q->shape[0], left < 0 ? -1 : left + 1, 0);
    DecodeArgs args{};
    args.q = data<void>(*q), args.k = data<void>(*k_cache), args.v = data<void>(*v_cache);
    args.out = data<void>(*out), args.lse = data<float>(*lse);
    args.lengths = data<int32_t>(*lengths);
    args.lengths_stride = stride(*lengths, 0);
    if (block_table) {
      args.table = data<int32_t>(*block_table);
      strides_of(*block_table, 2, args.table_stride);
    }
    if (quantised(kept)) {
      args.k_scale = data<float>(*k_scale), args.v_scale = data<float>(*v_scale);
      strides_of(*k_scale, 3, args.k_scale_stride), strides_of(*v_scale, 3, args.v_scale_stride);
    }
    if (alibi_slopes)
      args.slopes = data<float>(*alibi_slopes), args.slopes_stride = stride(*alibi_slopes, 0);
    if (sinks) args.sinks = data<float>(*sinks), args.sinks_stride = stride(*sinks, 0);
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16, args.int8 = kept == DType::i8;
    args.float8 = float8;
    args.batch = q->shape[0], args.heads = q->shape[1], args.kv_heads = k_cache->shape[1];
    args.page = k_cache->shape[2];
    args.head_dim = q->shape[2], args.value_dim = v_cache->shape[3];
    strides_of(*q, 2, args.q_stride), strides_of(*out, 2, args.out_stride);
    strides_of(*lse, 2, args.lse_stride);
    strides_of(*k_cache, 3, args.k_stride), strides_of(*v_cache, 3, args.v_stride);
    args.left = left, args.softcap = softcap, args.scale = scale;
    if (!on_cuda(*q)) return cpu().decode(args);
    args.capacity = args.page * (block_table ? block_table->shape[1] : 1);
    const int64_t splits = most_splits(args.capacity, left);
    if (splits > 1) {
      require_rank(workspace, "workspace", 1);
      require_dtype(*workspace, "workspace", DType::f32);
      require_device(*workspace, "workspace", *q);
      require_contiguous(*workspace, "workspace");
      const int64_t floats = args.batch * args.heads * splits * (args.value_dim + 2);
      HEXAD_REQUIRE(workspace->shape[0] >= floats, "workspace: has %lld floats, wants %lld",
                    (long long)workspace->shape[0], (long long)floats);
      args.workspace = data<float>(*workspace);
    }
    cuda::decode(args, stream);
  });
}
