// Attention over packed sequences by attention's kernels: each block finds its sequence in the
// starts, which only the device reads.
#include "cuda/attend.cuh"
#include "op/attention_varlen.h"

namespace hexad {
namespace cuda {

void attention_varlen(const AttentionVarlenArgs& args, hexad_stream stream) {
  AttendTask task{};
  AttentionArgs& a = task.a;
  a.q = args.q, a.k = args.k, a.v = args.v, a.out = args.out, a.lse = args.lse;
  a.slopes = args.slopes, a.sinks = args.sinks;
  a.bf16 = args.bf16, a.f16 = args.f16;
  a.batch = args.sequences, a.rows = args.rows, a.keys = args.keys;
  a.heads = args.heads, a.kv_heads = args.kv_heads;
  a.head_dim = args.head_dim, a.value_dim = args.value_dim;
  const auto turn = [](const int64_t (&token_head)[2], int64_t (&to)[3]) {
    to[0] = 0, to[1] = token_head[1], to[2] = token_head[0];
  };
  turn(args.q_stride, a.q_stride), turn(args.k_stride, a.k_stride);
  turn(args.v_stride, a.v_stride), turn(args.out_stride, a.out_stride);
  a.lse_stride[1] = args.lse_stride[0], a.lse_stride[2] = args.lse_stride[1];
  a.left = args.left, a.right = args.right, a.softcap = args.softcap, a.scale = args.scale;
  task.cu_q = args.cu_q, task.cu_k = args.cu_k, task.upper_left = args.upper_left;
  attend("attention_varlen", task, stream);
}

}  // namespace cuda
}  // namespace hexad
