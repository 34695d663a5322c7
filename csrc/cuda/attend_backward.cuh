// What the kernels of attention_backward share. Each gradient has one owner and no atomics: a block
// of query rows goes over the keys for grad_q, a block of keys over the queries, head after head of
// its group, for grad_k and grad_v. So the scores are made twice, and the sums have one order.
#pragma once

#include "cuda/attend.cuh"
#include "op/attention_backward.h"

namespace hexad {
namespace cuda {

struct BackwardTask {
  AttentionBackwardArgs a;  // workspace: delta of each row, (batch, heads, rows)
  bool vector;              // every row of q, k, v, grad_out starts at a multiple of 16 bytes
  bool vector_grads;        // and of the gradients
};

// What a row needs besides its scores: lse, infinite where the row saw nothing (its
// weights become 0), and delta.
struct RowStatistics {
  float lse, delta;
};
__device__ inline RowStatistics row_statistics(const AttentionBackwardArgs& a, int b, int head,
                                               int i) {
  if (i >= a.rows) return {INFINITY, 0.f};
  const float lse = a.lse[b * a.lse_stride[0] + head * a.lse_stride[1] + i * a.lse_stride[2]];
  return {lse == -INFINITY ? INFINITY : lse,
          a.workspace[(int64_t(b) * a.heads + head) * a.rows + i]};
}

// Whether row i sees key j, and the bias of its score.
__device__ inline bool sees_key(const AttentionBackwardArgs& a, int b, int head, int i, int j,
                                float& bias) {
  if (i >= a.rows || j >= a.keys) return false;
  const int ahead = j - (i + int(a.offset));
  if ((a.left >= 0 && ahead < -a.left) || (a.right >= 0 && ahead > a.right)) return false;
  if (!a.mask) return true;
  const int64_t at =
      b * a.mask_stride[0] + head * a.mask_stride[1] + i * a.mask_stride[2] + j * a.mask_stride[3];
  if (a.mask_kind == 0) return static_cast<const uint8_t*>(a.mask)[at];
  bias = a.mask_kind == 1   ? static_cast<const float*>(a.mask)[at]
         : a.mask_kind == 2 ? to_float(static_cast<const bf16*>(a.mask)[at])
                            : to_float(static_cast<const f16*>(a.mask)[at]);
  return bias != -INFINITY;
}

// Of a pair that see each other (kQuick: as exactly as 16-bit types ask): dot <q, k> becomes the
// weight p, dp <grad_out, v> becomes ds.
template <bool kQuick>
__device__ inline void pair_gradient(const AttentionBackwardArgs& a, RowStatistics row, float bias,
                                     float& dot, float& dp) {
  float x = dot * a.scale, slope = a.scale;
  if (a.softcap > 0) {
    const float t = tanhf(x / a.softcap);
    x = a.softcap * t, slope *= 1.f - t * t;
  }
  const float ahead = x + bias - row.lse;
  const float p = kQuick ? exp2f(ahead * kLog2e) : expf(ahead);
  dot = p, dp = p * (dp - row.delta) * slope;
}

// The rows that may see a key from `first` to `last`, from a multiple of `step`.
__device__ inline void row_range(const AttentionBackwardArgs& a, int first, int last, int step,
                                 int& begin, int& end) {
  const int low = a.right >= 0 ? first - int(a.right) - int(a.offset) : 0;
  begin = low > 0 ? low / step * step : 0;
  const int64_t high = a.left >= 0 ? last + a.left - a.offset + 1 : a.rows;
  end = high < a.rows ? int(high) : int(a.rows);
}

void sm80_attend_backward(const BackwardTask& task, bf16, hexad_stream stream);
void sm80_attend_backward(const BackwardTask& task, f16, hexad_stream stream);
void plain_attend_backward(const BackwardTask& task, hexad_stream stream);

}  // namespace cuda
}  // namespace hexad
