#include "op/append_kv.h"

#include <algorithm>

#include "api/cache.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_append_kv(const hexad_tensor* k, const hexad_tensor* v,
                                        hexad_tensor* k_cache, hexad_tensor* v_cache,
                                        const hexad_tensor* lengths,
                                        const hexad_tensor* block_table, const hexad_tensor* cos,
                                        const hexad_tensor* sin, hexad_tensor* k_scale,
                                        hexad_tensor* v_scale, int32_t interleaved,
                                        hexad_stream stream) {
  return guarded([&] {
    const hexad_tensor* tensors[] = {k, v, k_cache, v_cache};
    const char* names[] = {"k", "v", "k_cache", "v_cache"};
    for (int i = 0; i < 4; ++i) require_rank(tensors[i], names[i], 4);
    require_rank(lengths, "lengths", 1);
    const DType dtype = require_floats(tensors, names, 2, on_cuda(*k));
    const DType kept = require_cache(*k_cache, *v_cache, k_scale, v_scale, *k);
    const int float8 = float8_kind(kept, on_cuda(*k), "append_kv");
    for (int i = 0; i < 3; ++i) require_size(*v, "v", i, k->shape[i]);
    require_size(*k_cache, "k_cache", 1, k->shape[1]);
    require_size(*k_cache, "k_cache", 3, k->shape[3]);
    require_size(*v_cache, "v_cache", 3, v->shape[3]);
    require_distinct(*k_cache, "k_cache");
    require_distinct(*v_cache, "v_cache");
    if (quantised(kept)) {
      require_distinct(*k_scale, "k_scale");
      require_distinct(*v_scale, "v_scale");
      if (std::max(k->shape[3], v->shape[3]) > kMaxHeadDim)
        fail(HEXAD_UNSUPPORTED, "k: head dimension over %lld", (long long)kMaxHeadDim);
    }
    const int64_t batch = k->shape[0], rows = k->shape[2];
    HEXAD_REQUIRE(!cos == !sin, "%s: missing, cos and sin come together", cos ? "sin" : "cos");
    require_places(*k_cache, *lengths, block_table, batch, 0, rows);
    AppendKvArgs args{};
    if (cos) {
      args.tables_bf16 = require_rotation(cos, sin, k->shape[3], *k);
      require_positions(lengths, "lengths", batch, rows, cos->shape[0]);
    }
    args.k = data<void>(*k), args.v = data<void>(*v);
    args.k_cache = data<void>(*k_cache), args.v_cache = data<void>(*v_cache);
    args.lengths = data<int32_t>(*lengths), args.lengths_stride = stride(*lengths, 0);
    if (block_table) {
      args.table = data<int32_t>(*block_table);
      strides_of(*block_table, 2, args.table_stride);
    }
    if (cos) {
      args.cos = data<void>(*cos), args.sin = data<void>(*sin);
      args.cos_stride = stride(*cos, 0), args.sin_stride = stride(*sin, 0);
    }
    if (quantised(kept)) {
      args.k_scale = data<float>(*k_scale), args.v_scale = data<float>(*v_scale);
      strides_of(*k_scale, 3, args.k_scale_stride), strides_of(*v_scale, 3, args.v_scale_stride);
    }
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16,
    args.interleaved = interleaved != 0, args.float8 = float8;
    args.batch = batch, args.kv_heads = k->shape[1], args.rows = rows;
    args.page = k_cache->shape[2], args.head_dim = k->shape[3], args.value_dim = v->shape[3];
    strides_of(*k, 3, args.k_stride), strides_of(*v, 3, args.v_stride);
    strides_of(*k_cache, 3, args.k_cache_stride), strides_of(*v_cache, 3, args.v_cache_stride);
    if (on_cuda(*k)) return cuda::append_kv(args, stream);
    cpu().append_kv(args);
  });
}
