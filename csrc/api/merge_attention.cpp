#include "op/merge_attention.h"

#include "api/heads.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_merge_attention(const hexad_tensor* out_a, const hexad_tensor* lse_a,
                                              const hexad_tensor* out_b, const hexad_tensor* lse_b,
                                              hexad_tensor* out, hexad_tensor* lse,
                                              hexad_stream stream) {
  return guarded([&] {
    const hexad_tensor* tensors[] = {out_a, out_b, out};
    const char* names[] = {"out_a", "out_b", "out"};
    for (int i = 0; i < 3; ++i) require_rank(tensors[i], names[i], 2);
    const DType dtype = require_floats(tensors, names, 3);
    const hexad_tensor* statistics[] = {lse_a, lse_b, lse};
    const char* statistic_names[] = {"lse_a", "lse_b", "lse"};
    for (int i = 0; i < 3; ++i) {
      require_rank(statistics[i], statistic_names[i], 1);
      require_dtype(*statistics[i], statistic_names[i], DType::f32);
      require_rows(*statistics[i], statistic_names[i]);
      require_size(*statistics[i], statistic_names[i], 0, out_a->shape[0]);
      require_device(*statistics[i], statistic_names[i], *out_a);
      require_size(*tensors[i], names[i], 0, out_a->shape[0]);
      require_size(*tensors[i], names[i], 1, out_a->shape[1]);
    }
    require_distinct(*out, "out");
    const MergeAttentionArgs args{data<void>(*out_a),   data<void>(*out_b), data<float>(*lse_a),
                                  data<float>(*lse_b),  data<void>(*out),   data<float>(*lse),
                                  dtype == DType::bf16, out_a->shape[0],    out_a->shape[1],
                                  stride(*out_a, 0),    stride(*out_b, 0),  stride(*out, 0)};
    if (on_cuda(*out_a)) return cuda::merge_attention(args, stream);
    cpu().merge_attention(args);
  });
}
