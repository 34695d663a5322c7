// One query per sequence: one task is a sequence and a key head, whose query heads share the keys.
#include "op/decode.h"

#include "cpu/attend_few.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

template <class T>
void run(const DecodeArgs& a) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t block = block_rows(a.head_dim, a.value_dim);
  parallel_for(a.batch * a.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t b = t / a.kv_heads, h = t % a.kv_heads, head = h * group;
      Job<T> job{};
      job.q = static_cast<const T*>(a.q) + b * a.q_stride[0] + head * a.q_stride[1];
      job.q_head = a.q_stride[1];
      job.out = static_cast<T*>(a.out) + b * a.out_stride[0] + head * a.out_stride[1];
      job.out_head = a.out_stride[1];
      job.lse = a.lse + b * a.lse_stride[0] + head * a.lse_stride[1];
      job.lse_head = a.lse_stride[1];
      job.group = group;
      job.keys.k = static_cast<const T*>(a.k) + h * a.k_stride[1];
      job.keys.v = static_cast<const T*>(a.v) + h * a.v_stride[1];
      job.keys.k_key = a.k_stride[2], job.keys.v_key = a.v_stride[2];
      if (a.table) {
        job.keys.pages = a.table + b * a.table_stride[0];
        job.keys.pages_step = a.table_stride[1], job.keys.page = a.page;
        job.keys.k_page = a.k_stride[0], job.keys.v_page = a.v_stride[0];
      } else {
        job.keys.k += b * a.k_stride[0], job.keys.v += b * a.v_stride[0];
      }
      job.count = a.lengths[b * a.lengths_stride];
      job.offset = job.count - 1, job.left = a.left, job.right = 0;
      job.head_dim = a.head_dim, job.value_dim = a.value_dim;
      job.scale = a.scale, job.softcap = a.softcap;
      for (int64_t at = 0; at < group; at += block) attend(job, at, std::min(at + block, group));
    }
  });
}

}  // namespace

namespace HEXAD_ISA {

void decode(const DecodeArgs& a) {
  a.bf16 ? run<bf16>(a) : run<float>(a);
}

}  // namespace HEXAD_ISA
}  // namespace hexad
