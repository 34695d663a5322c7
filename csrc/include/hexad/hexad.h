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
  uint8_t dtype_code; /* 0 int, 1 uint, 2 float, 4 bfloat, 6 bool */
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

/* coupling: y_active = x_active * exp(s) + shift, or its inverse; y_passive = x_passive.
 *   x, y (B, N) row-contiguous, N = channels * spatial; log_det (B) fp32 = +-sum of s over the row.
 *   shift, log_scale (B, Na) for split 0 (the active range is contiguous), (B, N) for split 1.
 *   log_scale NULL: additive, log_det = 0.
 *   split 0 channel: `active_begin` is the first active element of a row, Na = shift columns.
 *   split 1 checkerboard: rows of `width`, `height` of them a channel; element (h, w) is active
 * when (h + w) % 2 == (flip ? 0 : 1). scale_map 0: s = r; 1: s = clamp * tanh(r / clamp); 2: s =
 * log(sigmoid(r + 2)). */
HEXAD_API hexad_status hexad_coupling(const hexad_tensor* x, const hexad_tensor* shift,
                                      const hexad_tensor* log_scale, hexad_tensor* y,
                                      hexad_tensor* log_det, int32_t inverse, int32_t split,
                                      int32_t flip, int64_t active_begin, int64_t height,
                                      int64_t width, int32_t scale_map, float clamp,
                                      hexad_stream stream);

#ifdef __cplusplus
}
#endif
#endif
