// Packed sequences: one task is a run of packed query rows of one key head, cut where sequences
// end. Compiled as a part of attention.cpp, whose blocks it shares.
#pragma once

#include "cpu/attend_block.h"
#include "cpu/parallel.h"
#include "op/attention_varlen.h"

namespace hexad {
namespace {

template <class T>
void sequence(const AttentionVarlenArgs& a, int64_t n, int64_t h, int64_t begin, int64_t end) {
  const int64_t group = a.heads / a.kv_heads, head = h * group;
  const int64_t q0 = a.cu_q[n], k0 = a.cu_k[n];
  const int64_t rows = a.cu_q[n + 1] - q0, keys = a.cu_k[n + 1] - k0;
  Job<T> job{};
  job.q = static_cast<const T*>(a.q) + q0 * a.q_stride[0] + head * a.q_stride[1];
  job.q_row = a.q_stride[0], job.q_head = a.q_stride[1];
  job.out = static_cast<T*>(a.out) + q0 * a.out_stride[0] + head * a.out_stride[1];
  job.out_row = a.out_stride[0], job.out_head = a.out_stride[1];
  job.lse = a.lse + head * a.lse_stride[0] + q0 * a.lse_stride[1];
  job.lse_head = a.lse_stride[0], job.lse_row = a.lse_stride[1];
  job.group = group;
  job.k = static_cast<const T*>(a.k) + k0 * a.k_stride[0] + h * a.k_stride[1];
  job.v = static_cast<const T*>(a.v) + k0 * a.v_stride[0] + h * a.v_stride[1];
  job.k_key = a.k_stride[0], job.v_key = a.v_stride[0];
  job.count = keys, job.offset = a.upper_left ? 0 : keys - rows;
  job.left = a.left, job.right = a.right;
  job.head_dim = a.head_dim, job.value_dim = a.value_dim;
  job.slopes = a.slopes ? a.slopes + head : nullptr;
  job.sinks = a.sinks ? a.sinks + head : nullptr;
  job.scale = a.scale, job.softcap = a.softcap;
  attend(job, begin - q0 * group, end - q0 * group);
}

template <class T>
void run(const AttentionVarlenArgs& a) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t rows = a.rows * group;
  const int64_t block = block_rows<T>(rows, a.kv_heads, a.head_dim, a.value_dim);
  const int64_t blocks = (rows + block - 1) / block;
  parallel_for(blocks * a.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t h = t / blocks;
      int64_t at = t % blocks * block;
      const int64_t end = std::min(at + block, rows);
      int64_t n = std::upper_bound(a.cu_q, a.cu_q + a.sequences + 1, at / group) - a.cu_q - 1;
      for (; at < end; ++n) {
        const int64_t stop = std::min(end, a.cu_q[n + 1] * group);
        if (at < stop) sequence<T>(a, n, h, at, stop);
        at = std::max(at, stop);
      }
    }
  });
}

}  // namespace
}  // namespace hexad
