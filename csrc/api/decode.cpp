#include "op/decode.h"

#include "api/heads.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_decode(const hexad_tensor* q, const hexad_tensor* k_cache,
                                     const hexad_tensor* v_cache, const hexad_tensor* lengths,
                                     const hexad_tensor* block_table, hexad_tensor* out,
                                     hexad_tensor* lse, int64_t left, float softcap, float scale,
                                     hexad_stream stream) {
  return guarded([&] {
    require_rank(q, "q", 3);
    require_rank(k_cache, "k_cache", 4);
    require_rank(v_cache, "v_cache", 4);
    require_rank(lengths, "lengths", 1);
    require_rank(out, "out", 3);
    require_rank(lse, "lse", 2);
    const hexad_tensor* tensors[] = {q, k_cache, v_cache, out};
    const char* names[] = {"q", "k_cache", "v_cache", "out"};
    const DType dtype = require_floats(tensors, names, 4);
    require_dtype(*lse, "lse", DType::f32);
    require_device(*lse, "lse", *q);
    for (int i = 0; i < 2; ++i) {
      require_size(*out, "out", i, q->shape[i]);
      require_size(*lse, "lse", i, q->shape[i]);
    }
    for (int i = 0; i < 3; ++i) require_size(*v_cache, "v_cache", i, k_cache->shape[i]);
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
    args.bf16 = dtype == DType::bf16;
    args.batch = q->shape[0], args.heads = q->shape[1], args.kv_heads = k_cache->shape[1];
    args.page = k_cache->shape[2];
    args.head_dim = q->shape[2], args.value_dim = v_cache->shape[3];
    strides_of(*q, 2, args.q_stride), strides_of(*out, 2, args.out_stride);
    strides_of(*lse, 2, args.lse_stride);
    strides_of(*k_cache, 3, args.k_stride), strides_of(*v_cache, 3, args.v_stride);
    args.left = left, args.softcap = softcap, args.scale = scale;
    if (on_cuda(*q)) return cuda::decode(args, stream);
    cpu().decode(args);
  });
}
