// Prefill: one task is a block of query rows of one key head. Neighbours in time share a head's
// keys and values, and within a head the longest rows come first: what is left for last is short.
#include "op/attention.h"

#include "cpu/attend_block.h"
#include "cpu/attention_varlen.h"
#include "cpu/parallel.h"
#include "cpu/plain.h"

namespace hexad {
namespace {

// `slots`, if any: for that many threads, what they keep of a mask that all heads share. Heads
// follow one another then: blocks are large enough that a head's keys and values need not stay in
// cache.
template <class T>
void run(const AttentionArgs& a, SharedMask* slots, int count) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t rows = a.rows * group;  // of one key head
  const int64_t block = block_rows<T>(rows, a.batch * a.kv_heads, a.head_dim, a.value_dim);
  const int64_t blocks = (rows + block - 1) / block;
  const int64_t mask_size = a.mask_kind == 0 ? 1 : a.mask_kind == 1 ? 4 : 2;
  const int threads = parallel_threads();
  parallel_for(blocks * a.batch * a.kv_heads, 1, [&](int64_t begin, int64_t end) {
    const int slot = threads > 1 ? parallel_thread() : 0;
    SharedMask* shared = slot < count ? slots + slot : nullptr;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t outer = count ? t / a.kv_heads : t / blocks / a.kv_heads * blocks + t % blocks;
      const int64_t h = count ? t % a.kv_heads : t / blocks % a.kv_heads;
      const int64_t b = outer / blocks, at = (blocks - 1 - outer % blocks) * block;
      const int64_t head = h * group;
      Job<T> job{};
      job.q = static_cast<const T*>(a.q) + b * a.q_stride[0] + head * a.q_stride[1];
      job.q_head = a.q_stride[1], job.q_row = a.q_stride[2];
      job.out = static_cast<T*>(a.out) + b * a.out_stride[0] + head * a.out_stride[1];
      job.out_head = a.out_stride[1], job.out_row = a.out_stride[2];
      job.lse = a.lse + b * a.lse_stride[0] + head * a.lse_stride[1];
      job.lse_head = a.lse_stride[1], job.lse_row = a.lse_stride[2];
      job.group = group;
      job.k = static_cast<const T*>(a.k) + b * a.k_stride[0] + h * a.k_stride[1];
      job.v = static_cast<const T*>(a.v) + b * a.v_stride[0] + h * a.v_stride[1];
      job.k_key = a.k_stride[2], job.v_key = a.v_stride[2];
      job.count = a.keys, job.offset = a.offset, job.left = a.left, job.right = a.right;
      if (a.mask) {
        job.mask.kind = a.mask_kind == 0   ? MaskKind::boolean
                        : a.mask_kind == 1 ? MaskKind::f32
                        : a.mask_kind == 2 ? MaskKind::bf16
                                           : MaskKind::f16;
        job.mask.data = static_cast<const char*>(a.mask) +
                        (b * a.mask_stride[0] + head * a.mask_stride[1]) * mask_size;
        job.mask.head = a.mask_stride[1], job.mask.row = a.mask_stride[2];
        job.mask.key = a.mask_stride[3];
      }
      job.head_dim = a.head_dim, job.value_dim = a.value_dim;
      job.slopes = a.slopes ? a.slopes + head : nullptr;
      job.sinks = a.sinks ? a.sinks + head : nullptr;
      job.scale = a.scale, job.softcap = a.softcap;
      job.shared = shared;
      attend(job, at, std::min(at + block, rows));
    }
  });
}

// By itself, as its half a megabyte of the stack is for these masks only.
template <class T>
__attribute__((noinline)) void run_sharing(const AttentionArgs& a) {
  constexpr int kSlots = 8;  // other threads read the mask for every head
  SharedMask slots[kSlots];
  run<T>(a, slots, kSlots);
}

template <class T>
void run(const AttentionArgs& a) {
  if constexpr (kTiled<T>)
    if (a.mask && a.mask_kind == 0 && a.mask_stride[1] == 0 && a.mask_stride[2] != 0 &&
        a.kv_heads > 1)
      return run_sharing<T>(a);
  run<T>(a, nullptr, 0);
}

}  // namespace

namespace HEXAD_ISA {

void attention(const AttentionArgs& a) {
#if HEXAD_SHARES
  a.bf16 ? run<bf16>(a) : HEXAD_PLAIN::attention(a);
#else
  a.bf16 ? run<bf16>(a) : a.f16 ? run<f16>(a) : run<float>(a);
#endif
}

void attention_varlen(const AttentionVarlenArgs& a) {
#if HEXAD_SHARES
  a.bf16 ? run<bf16>(a) : HEXAD_PLAIN::attention_varlen(a);
#else
  a.bf16 ? run<bf16>(a) : a.f16 ? run<f16>(a) : run<float>(a);
#endif
}

}  // namespace HEXAD_ISA
}  // namespace hexad
