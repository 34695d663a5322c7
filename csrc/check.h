// What every door shares: errors that stop at the C ABI, and reading a tensor's shape.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "hexad/hexad.h"

namespace hexad {

struct Failure {
  hexad_status status;
};

void set_error(const char* text);
[[noreturn]] void fail(hexad_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

#define HEXAD_REQUIRE(condition, ...)                            \
  do {                                                           \
    if (!(condition)) ::hexad::fail(HEXAD_INVALID, __VA_ARGS__); \
  } while (0)

// Runs a door's body; a failure becomes a status and a text.
template <class Body>
hexad_status guarded(Body&& body) {
  try {
    body();
    return HEXAD_OK;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (...) {
    set_error("unexpected failure inside hexad");
    return HEXAD_UNSUPPORTED;
  }
}

enum class DType { f32, bf16, f16, f64, i8, i32, i64, boolean, e4m3, e5m2, other };

DType dtype_of(const hexad_tensor& t);
const char* name_of(DType d);

inline int64_t stride(const hexad_tensor& t, int i) {
  if (t.strides) return t.strides[i];
  int64_t s = 1;
  for (int j = t.ndim - 1; j > i; --j) s *= t.shape[j];
  return s;
}
inline int64_t numel(const hexad_tensor& t) {
  int64_t n = 1;
  for (int i = 0; i < t.ndim; ++i) n *= t.shape[i];
  return n;
}
template <class T>
T* data(const hexad_tensor& t) {
  return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
}

// The most elements that a tensor may have, counting a dimension of 0 as 1: products of any of its
// sizes, and sums of a few such products, fit int64.
constexpr int64_t kMostElements = int64_t(1) << 60;

// Each names the argument, what it got and what it wants. A door calls require_tensor or
// require_rank on a tensor before any other of these.
void require_tensor(const hexad_tensor* t, const char* name, int least_rank = 0);
void require_rank(const hexad_tensor* t, const char* name, int rank);
// float32, bfloat16, or with `half` float16: which.
DType require_float(const hexad_tensor& t, const char* name, bool half = false);
void require_dtype(const hexad_tensor& t, const char* name, DType want);
void require_device(const hexad_tensor& t, const char* name, const hexad_tensor& like);
void require_size(const hexad_tensor& t, const char* name, int dim, int64_t want);
void require_shape(const hexad_tensor& t, const char* name, const hexad_tensor& like);
void require_rows(const hexad_tensor& t, const char* name);  // last dimension has stride 1
bool is_contiguous(const hexad_tensor& t);
void require_packed(const hexad_tensor& t, const char* name, int from);  // dimensions >= from
inline void require_contiguous(const hexad_tensor& t, const char* name) {
  require_packed(t, name, 0);
}
// An output: no two elements of a dimension share their memory.
void require_distinct(const hexad_tensor& t, const char* name);
bool on_cuda(const hexad_tensor& t);
inline void require_cpu(const hexad_tensor& t, const char* op) {  // ops without a CUDA kernel
  if (on_cuda(t)) fail(HEXAD_UNSUPPORTED, "%s has no CUDA kernel", op);
}

}  // namespace hexad
