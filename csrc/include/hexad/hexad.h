/* hexad: the C ABI of the kernel library.
 *
 * Conventions
 *   - hexad_tensor has the memory layout of DLPack's DLTensor: a DLTensor* may be passed by a cast.
 *     strides == NULL means C-contiguous; strides count elements.
 *   - The caller allocates every output. Nothing is written unless the status is HEXAD_OK, except
 *     where a function says otherwise. The library never allocates memory that outlives a call.
 *   - A function returns a status; hexad_last_error() has the reason, per thread.
 *   - `stream` is a cudaStream_t for CUDA tensors and ignored for CPU tensors. Nothing
 * synchronises.
 *   - Optional tensors may be NULL.
 */
#ifndef HEXAD_H_
#define HEXAD_H_

#include <stdint.h>

#if defined(__GNUC__)
#define HEXAD_API __attribute__((visibility("default")))
#else
#define HEXAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define HEXAD_ABI_VERSION 1

typedef enum {
  HEXAD_OK = 0,
  HEXAD_INVALID = 1,     /* an argument is wrong: the text names it */
  HEXAD_UNSUPPORTED = 2, /* the arguments are fine, this build or machine can't serve them */
  HEXAD_CUDA = 3         /* the CUDA runtime reported an error */
} hexad_status;

typedef enum { HEXAD_CPU = 1, HEXAD_CUDA_DEVICE = 2 } hexad_device_type; /* DLPack's numbers */

typedef struct {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t
      dtype_code; /* 0 int, 1 uint, 2 float, 4 bfloat, 6 bool; 10 and 12 float8 e4m3fn and e5m2 */
  uint8_t dtype_bits;
  uint16_t dtype_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} hexad_tensor;

typedef void* hexad_stream;

/* The version of this header that the library was built with. */
HEXAD_API int hexad_abi_version(void);

/* Why the last call on this thread failed; "" if it did not. */
HEXAD_API const char* hexad_last_error(void);

/* The instruction set in use ("avx2", "avx512", "base") and those this machine has, joined by ",".
 * HEXAD_ISA in the environment, or hexad_set_isa, forces one; fp32 results do not depend on it. */
HEXAD_API const char* hexad_isa(void);
HEXAD_API const char* hexad_isa_available(void);
HEXAD_API hexad_status hexad_set_isa(const char* name);

/* Threads: hexad joins the OpenMP runtime of the host program. `path` names the libgomp to bind;
 * NULL binds the system's. Without a call the system's is bound at first use.
 * hexad_openmp_path returns the bound file ("" when running serially). */
HEXAD_API hexad_status hexad_bind_openmp(const char* path);
HEXAD_API const char* hexad_openmp_path(void);

/* "" if CUDA kernels are in this build, else why not. */
HEXAD_API const char* hexad_cuda_missing(void);

/* append_kv: writes k and v into a cache, the only outputs, in place.
 *   k (B, Hkv, S, D), v (B, Hkv, S, Dv); k_cache (P, Hkv, page, D), v_cache (P, Hkv, page, Dv).
 *   Row s of sequence b goes to position lengths[b] + s: slot position % page of page
 *   block_table[b][position / page], or of page b where block_table is NULL.
 *   lengths (B) and block_table (B, max_pages) int32; on the CPU they are checked before anything
 * is written. cos, sin (max_pos, D / 2), both or neither: k is rotated as in rope, whose tables
 * they are.
 *   k_scale, v_scale (P, Hkv, page) float32: NULL, or the scales of an int8 cache, written as it
 * is: scale = max |x| / 127 of a row, and x / scale rounded to nearest even; on CUDA also of a
 *   float8_e4m3fn (448 in place of 127) or float8_e5m2 cache (57344). */
HEXAD_API hexad_status hexad_append_kv(const hexad_tensor* k, const hexad_tensor* v,
                                       hexad_tensor* k_cache, hexad_tensor* v_cache,
                                       const hexad_tensor* lengths, const hexad_tensor* block_table,
                                       const hexad_tensor* cos, const hexad_tensor* sin,
                                       hexad_tensor* k_scale, hexad_tensor* v_scale,
                                       int32_t interleaved, hexad_stream stream);

/* attention: out_i = sum_j softmax_j(s_ij) v_j, s_ij = scale <q_i, k_j> (+ mask); lse_i = ln sum_j
 * exp(s_ij). q (B, Hq, Sq, D), k (B, Hkv, Skv, D), v (B, Hkv, Skv, Dv), out (B, Hq, Sq, Dv), any
 *   strides but 1 in the last dimension; lse (B, Hq, Sq) float32. Hkv divides Hq.
 *   causal 0: no; 1: row i sits at i + Skv - Sq; 2: at i, and sees no later key.
 *   left, right: keys from position - left to position + right; -1: no limit.
 *   mask (B or 1, Hq or 1, Sq or 1, Skv or 1): bool (nonzero = attend), float32 or q's dtype
 * (added). softcap c > 0: s <- c tanh(s / c) before masks; 0: off. A row that sees nothing: out 0,
 * lse -inf.
 *   alibi_slopes (Hq) float32: s <- s - slope |position - j| after the cap. sinks (Hq) float32:
 * each row's weights share with a key of that score and no value. Both may be NULL, on CUDA they
 * must. float32, bfloat16; on the CPU float16.
 */
HEXAD_API hexad_status hexad_attention(const hexad_tensor* q, const hexad_tensor* k,
                                       const hexad_tensor* v, const hexad_tensor* mask,
                                       const hexad_tensor* alibi_slopes, const hexad_tensor* sinks,
                                       hexad_tensor* out, hexad_tensor* lse, int32_t causal,
                                       int64_t left, int64_t right, float softcap, float scale,
                                       hexad_stream stream);

/* attention_backward: the gradients of attention, given those of its outputs.
 *   grad_out, out (B, Hq, Sq, Dv), lse, grad_lse (B, Hq, Sq) float32 (grad_lse NULL: zero): out and
 *   lse as attention returned them; q, k, v, mask, causal, left, right, softcap, scale as it was
 *   given them. grad_q, grad_k, grad_v like q, k, v. A hidden pair gives no gradient.
 *   workspace: float32, N slots (a thread works in one) of R floats each, then B Hq Sq more, where
 *   R >= 128 (6 (D' + Dv') + 1024) + M D', M = Sq' Hq / Hkv, or 256 with split; Sq', D', Dv' are
 *   rounded up to 32. split: nonzero shares a head among threads, for calls with few heads; the
 *   same bits. */
HEXAD_API hexad_status hexad_attention_backward(
    const hexad_tensor* grad_out, const hexad_tensor* q, const hexad_tensor* k,
    const hexad_tensor* v, const hexad_tensor* out, const hexad_tensor* lse,
    const hexad_tensor* grad_lse, const hexad_tensor* mask, hexad_tensor* grad_q,
    hexad_tensor* grad_k, hexad_tensor* grad_v, hexad_tensor* workspace, int64_t slots,
    int32_t split, int32_t causal, int64_t left, int64_t right, float softcap, float scale,
    hexad_stream stream);

/* attention_varlen: attention within each of N packed sequences.
 *   q, out (Tq, Hq, D or Dv), k, v (Tk, Hkv, D or Dv), lse (Hq, Tq) float32; cu_seqlens_q,
 *   cu_seqlens_k (N + 1) int32: sequence n has rows cu[n] to cu[n + 1]. The rest as in attention.
 */
HEXAD_API hexad_status
hexad_attention_varlen(const hexad_tensor* q, const hexad_tensor* k, const hexad_tensor* v,
                       const hexad_tensor* cu_seqlens_q, const hexad_tensor* cu_seqlens_k,
                       const hexad_tensor* alibi_slopes, const hexad_tensor* sinks,
                       hexad_tensor* out, hexad_tensor* lse, int32_t causal, int64_t left,
                       int64_t right, float softcap, float scale, hexad_stream stream);

/* coupling: y_active = x_active * exp(s) + shift, or its inverse; y_passive = x_passive.
 *   x, y (B, C, ...), each batch row contiguous, float32 or bfloat16; log_det (B) float32 = +-sum
 * of s. shift, log_scale: for split 0 the active half (B, C_active, ...), for split 1 x's shape.
 *   log_scale NULL: additive, log_det = 0.
 *   split 0 channel: the last C/2 channels are active (flip: the first C - C/2);
 *   split 1 checkerboard: active where (h + w) is odd (flip: even); x (B, C, H, W) or (B, D).
 *   scale_map 0: s = r; 1: s = clamp * tanh(r / clamp); 2: s = log(sigmoid(r + 2)).
 *   partials (B N) float64, counters (B) int32, 0 before and after: scratch for the sums of CUDA
 *   rows with more than 4096 active elements, N = ceil(active / 4096); else unused, NULL. */
HEXAD_API hexad_status hexad_coupling(const hexad_tensor* x, const hexad_tensor* shift,
                                      const hexad_tensor* log_scale, hexad_tensor* y,
                                      hexad_tensor* log_det, hexad_tensor* partials,
                                      hexad_tensor* counters, int32_t inverse, int32_t split,
                                      int32_t flip, int32_t scale_map, float clamp,
                                      hexad_stream stream);

/* coupling_backward: gradients of coupling's x, shift and log_scale, by the options of the call.
 *   grad_y like y, each batch row contiguous, grad_log_det (B) float32: of its outputs; NULL: 0.
 *   value: y, or with from_input x. grad_x, grad_shift, grad_scale: contiguous, like x, shift and
 *   log_scale; NULL where not wanted. log_scale NULL: additive. */
HEXAD_API hexad_status hexad_coupling_backward(
    const hexad_tensor* grad_y, const hexad_tensor* grad_log_det, const hexad_tensor* value,
    const hexad_tensor* shift, const hexad_tensor* log_scale, hexad_tensor* grad_x,
    hexad_tensor* grad_shift, hexad_tensor* grad_scale, int32_t from_input, int32_t inverse,
    int32_t split, int32_t flip, int32_t scale_map, float clamp, hexad_stream stream);

/* gated_pixelcnn: the logits of the pixels begin, begin + 1, ... of a gated PixelCNN in raster
 * order, each drawn or read before the next.
 *   image (B, H, W) int64: its pixels are levels, read if seeds is NULL; else drawn and written,
 * with seeds (B) int64 and temperature as in sample, the pixel's number being the position.
 *   weights fp32, all layers', packed (csrc/op/gated_pixelcnn.h has their order and number).
 *   cache (B, n) fp32, what the pixels before `begin` left there; begin 0 clears it.
 *   logits (B, N, levels) fp32, of N pixels. All contiguous. */
HEXAD_API hexad_status hexad_gated_pixelcnn(hexad_tensor* image, const hexad_tensor* weights,
                                            hexad_tensor* cache, const hexad_tensor* seeds,
                                            hexad_tensor* logits, int64_t levels, int64_t channels,
                                            int64_t layers, int64_t kernel, int64_t begin,
                                            float temperature, hexad_stream stream);

/* roofline: work that runs at one limit of the CPU, to be timed by the caller.
 *   kind 0 float32 fma, 1 bfloat16 dot product: `count` rounds per thread, operations done in
 * flops[0]; kind 2 read, 3 copy: `count` elements of source (to target).  sink: one float32 per
 * thread. */
HEXAD_API hexad_status hexad_roofline(int32_t kind, int64_t count, const hexad_tensor* source,
                                      hexad_tensor* target, hexad_tensor* sink, hexad_tensor* flops,
                                      hexad_stream stream);
/* linear: y = act(x weight^T + bias) + residual.
 *   x (..., K), y and residual (..., N): contiguous, or matrices with contiguous rows; weight (N,
 * K) with contiguous rows; bias (N). fp32 or bf16, all of one dtype; bias, residual may be NULL.
 *   activation 0 none, 1 relu, 2 gelu (erf), 3 gelu (tanh), 4 silu, 5 tanh, 6 sigmoid; gates: 7
 * silu, 8 gelu (erf), where weight and bias have 2 N rows and y = act(first half) * second half +
 * residual. On CUDA also fp16, and 16 rows at most. */
HEXAD_API hexad_status hexad_linear(const hexad_tensor* x, const hexad_tensor* weight,
                                    const hexad_tensor* bias, const hexad_tensor* residual,
                                    hexad_tensor* y, int32_t activation, hexad_stream stream);

/* linear_packed: linear with a weight in panels of 16 of its rows.
 *   panels (ceil(rows / 16), words) int32, contiguous; form 0 float32: 16 words per input; 1
 * bfloat16: 16 per two inputs; 2 int8: 16 float32 scales, then 16 per four inputs, 128 added; 3
 * int4: per 32 inputs 16 words of bfloat16 scale and minimum, then 16 per eight inputs.
 *   workspace, for forms 2 and 3: (rows of x, words) int32, words = ceil(K / 64) * 35 for int8,
 * ceil(K / 32) * 19 for int4. Gates (activation 7, 8) want N to be a multiple of 16.
 *   On CUDA: forms 2 and 3, also fp16, 16 rows at most, and no workspace. */
HEXAD_API hexad_status hexad_linear_packed(const hexad_tensor* x, const hexad_tensor* panels,
                                           const hexad_tensor* bias, const hexad_tensor* residual,
                                           hexad_tensor* y, hexad_tensor* workspace,
                                           int32_t activation, int32_t form, hexad_stream stream);

/* maskedconv: 2d convolution over the kernel's first `taps` taps in raster order, 'same' zero
 * padding; weights of other taps do not count, whatever they hold.
 *   x (B, Cin, H, W), any strides; weight (Cout, Cin, kh, kw), contiguous, kh and kw odd; bias
 * (Cout) or NULL; fp32 or bf16, all of one dtype.
 *   row < 0: y (B, Cout, H, W); col < 0: that row alone, y (B, Cout, W); else that pixel alone, y
 * (B, Cout). y is contiguous.
 *   workspace: fp32, contiguous, n = Cin taps for each of Cout rounded up to 16, and 64 n + 16 for
 * each thread of the host's OpenMP runtime. */
HEXAD_API hexad_status hexad_maskedconv(const hexad_tensor* x, const hexad_tensor* weight,
                                        const hexad_tensor* bias, hexad_tensor* y,
                                        hexad_tensor* workspace, int64_t taps, int64_t row,
                                        int64_t col, hexad_stream stream);

/* norm: y = act((n * weight + bias) * (1 + scale) + shift), n = x normalised.
 *   kind 0 layer, 1 rms: x, y (..., D), over the last dimension; contiguous, or matrices with
 * contiguous rows. kind 2 group: x, y (B, C, ...) contiguous, over each of num_groups groups of
 * channels.
 *   weight, bias (D), or (C) for group; scale, shift (B, D) or (B, C), B x's first dimension. All
 * four may be NULL. fp32 or bf16, all of one dtype. activation 0 none, 1 silu. */
HEXAD_API hexad_status hexad_norm(const hexad_tensor* x, const hexad_tensor* weight,
                                  const hexad_tensor* bias, const hexad_tensor* scale,
                                  const hexad_tensor* shift, hexad_tensor* y, int32_t kind,
                                  double eps, int64_t num_groups, int32_t activation,
                                  hexad_stream stream);

/* vq: the nearest codebook entry by squared distance, the lowest index on ties.
 *   x, quantized (..., D): contiguous, or matrices with contiguous rows; codebook (K, D), K >= 1,
 * with contiguous rows; index int64, contiguous, one for each row of x.
 *   workspace fp32, contiguous: for more than 24 rows, (min(1024, max(64, 131072 / D rounded down
 * to 64)) + 6) D for each thread of the host's OpenMP runtime. A distance that is NaN gives
 * HEXAD_INVALID, after rows without one were written. */
HEXAD_API hexad_status hexad_vq(const hexad_tensor* x, const hexad_tensor* codebook,
                                hexad_tensor* quantized, hexad_tensor* index,
                                hexad_tensor* workspace, hexad_stream stream);

/* winograd: 3 x 3 convolution, stride 1, 'same' zero padding, by F(4 x 4, 3 x 3). All fp32.
 *   x (B, Cin, H, W), any strides; y (B, Cout, H, W), bias (Cout) or NULL, contiguous.
 *   taps (36, ceil(Cout / 16), Cin, 16), contiguous: tap (6 i + j, p, c, l) is element (i, j) of
 * G W G^T for output 16 p + l and input c, 0 beyond Cout; the rows of G are (1/4, 0, 0), (-1, -1,
 * -1) / 6, (-1, 1, -1) / 6, (1, 2, 4) / 24, (1, -2, 4) / 24, (0, 0, 1).
 *   workspace: contiguous. With T = B ceil(H / 4) ceil(W / 4) and C = Cin + Cout, each rounded up
 * to 16, and n the lesser of T and max(48, 43690 / (C + 1)), rounded up to 6: 36 (n C + 32)
 * floats. */
HEXAD_API hexad_status hexad_winograd(const hexad_tensor* x, const hexad_tensor* taps,
                                      const hexad_tensor* bias, hexad_tensor* y,
                                      hexad_tensor* workspace, hexad_stream stream);

/* decode: attention of one query a sequence over the first lengths[b] keys of its cache.
 *   q (B, Hq, D), out (B, Hq, Dv), lse (B, Hq) float32; the cache, lengths and block_table as in
 *   append_kv. left: the newest key and `left` before it; -1: all. softcap, scale as in attention.
 *   k_scale, v_scale (P, Hkv, page) float32: NULL, or the scales of an int8 cache, on CUDA also of
 * a float8_e4m3fn or float8_e5m2 one. alibi_slopes (Hq) float32 or NULL: slope * (key - newest key)
 * is added after the softcap. sinks (Hq) float32 or NULL: a logit without a value that joins the
 * softmax, and lse. workspace: float32, CUDA only, for caches of more keys than a split has: B Hq
 * (Dv + 2) floats for each split that a row may meet (csrc/op/decode.h says how many). */
HEXAD_API hexad_status hexad_decode(const hexad_tensor* q, const hexad_tensor* k_cache,
                                    const hexad_tensor* v_cache, const hexad_tensor* lengths,
                                    const hexad_tensor* block_table, const hexad_tensor* k_scale,
                                    const hexad_tensor* v_scale, const hexad_tensor* alibi_slopes,
                                    const hexad_tensor* sinks, hexad_tensor* out, hexad_tensor* lse,
                                    hexad_tensor* workspace, int64_t left, float softcap,
                                    float scale, hexad_stream stream);

/* merge_attention: the attention over two sets of keys, from the attention over each.
 *   out_a, out_b, out (N, D); lse_a, lse_b, lse (N) float32. A side with lse -inf is not read. */
HEXAD_API hexad_status hexad_merge_attention(const hexad_tensor* out_a, const hexad_tensor* lse_a,
                                             const hexad_tensor* out_b, const hexad_tensor* lse_b,
                                             hexad_tensor* out, hexad_tensor* lse,
                                             hexad_stream stream);

/* rope: rotates pairs (x1, x2) of a row at position p to (x1 c - x2 s, x2 c + x1 s), c = cos[p],
 * s = sin[p]. x, y (B, H, S, D); cos, sin (max_pos, D / 2) float32, on the CPU also bfloat16 for
 *   an x of that dtype; row s of sequence b is at position positions[b] + s (positions (B) int32,
 * NULL: 0). A pair is (i, i + D / 2), or (2i, 2i + 1) where interleaved is not 0. */
HEXAD_API hexad_status hexad_rope(const hexad_tensor* x, const hexad_tensor* cos,
                                  const hexad_tensor* sin, const hexad_tensor* positions,
                                  hexad_tensor* y, int32_t interleaved, hexad_stream stream);
/* invconv: y[b, o, s] = bias[o] + sum over c of weight[o, c] x[b, c, s], in float32.
 *   x, y (B, C, ...) fp32 or bf16, contiguous, C <= 1024; weight (C, C), bias (C) fp32, bias may be
 *   NULL. */
HEXAD_API hexad_status hexad_invconv(const hexad_tensor* x, const hexad_tensor* weight,
                                     const hexad_tensor* bias, hexad_tensor* y,
                                     hexad_stream stream);

/* randn: standard normals. seeds (B) int64, out (B, ...) fp32 contiguous, offset >= 0.
 * Row b is Box-Muller on Philox4x32-10 with key seeds[b] and counter (element / 4, offset). */
HEXAD_API hexad_status hexad_randn(const hexad_tensor* seeds, hexad_tensor* out, int64_t offset,
                                   hexad_stream stream);

/* sample: a token per row: temperature (0: greedy), top_k (0: off), top_p, min_p, in this order,
 * then a draw with Philox4x32-10 keyed by the row's seed at its position.
 *   logits (B, V) fp32 or bf16, contiguous rows; out (B) int64.
 *   seeds (B) int64, may be NULL if every temperature is 0.
 *   positions, top_ks (B) int64 and temperatures, top_ps, min_ps (B) fp32 go before the scalar of
 *   their name unless NULL.
 *   workspace (R, 4 V) int32, R >= 1 rows are drawn at a time; may be NULL if every temperature is
 *   0 or V <= 4096. On HEXAD_INVALID for NaN, or for a row that is -inf everywhere, `out` holds no
 * tokens. On CUDA there is no workspace, and such rows get -1 (NaN), -2 (-inf everywhere) or -3 (a
 * parameter out of range) while the others get their tokens. */
HEXAD_API hexad_status hexad_sample(const hexad_tensor* logits, const hexad_tensor* seeds,
                                    const hexad_tensor* positions, const hexad_tensor* top_ks,
                                    const hexad_tensor* temperatures, const hexad_tensor* top_ps,
                                    const hexad_tensor* min_ps, hexad_tensor* out,
                                    hexad_tensor* workspace, int64_t position, float temperature,
                                    int64_t top_k, float top_p, float min_p, hexad_stream stream);

/* step: one update of a diffusion sampler.
 *   table (T, 4, 8) fp32; table[index] = [[A, B, c, g, 0, 0, 0, 0], C[0], C[1], C[2]].
 *   m = uncond + g (model_output - uncond), or model_output; p = clip(A x + B m, -c, c);
 *   out_k = C[k] . (x, m, p, h1, h2, h3, last, noise). Terms with coefficient 0 are left out.
 *   model_output, uncond fp32 or bf16, all else fp32; one shape, contiguous. uncond, h1, h2, h3,
 *   last, noise, out1, out2 may be NULL; an absent input with a coefficient is HEXAD_INVALID.
 *   CUDA only, else NULL: seeds (B) int64 in place of noise, row b of x having the noise of
 *   hexad_randn with seeds[b] and offset index + 1; place, one int32 or int64 on the device, in
 *   place of index, where a number outside the table counts as the nearest row's. */
HEXAD_API hexad_status hexad_step(const hexad_tensor* table, const hexad_tensor* x,
                                  const hexad_tensor* model_output, const hexad_tensor* uncond,
                                  const hexad_tensor* h1, const hexad_tensor* h2,
                                  const hexad_tensor* h3, const hexad_tensor* last,
                                  const hexad_tensor* noise, hexad_tensor* out0, hexad_tensor* out1,
                                  hexad_tensor* out2, const hexad_tensor* seeds,
                                  const hexad_tensor* place, int64_t index, hexad_stream stream);

#ifdef __cplusplus
}
#endif
#endif
