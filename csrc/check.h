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

enum class DType { f32, bf16, f16, f64, i32, i64, boolean, other };

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

// Each names the argument, what it got and what it wants.
void require_rank(const hexad_tensor* t, const char* name, int rank);
void require_dtype(const hexad_tensor& t, const char* name, DType want);
void require_size(const hexad_tensor& t, const char* name, int dim, int64_t want);
void require_rows(const hexad_tensor& t, const char* name);  // last dimension has stride 1
void require_packed(const hexad_tensor& t, const char* name, int from);  // dimensions >= from
void require_device(const hexad_tensor& t, const char* name, const hexad_tensor& like);
bool on_cuda(const hexad_tensor& t);

}  // namespace hexad
