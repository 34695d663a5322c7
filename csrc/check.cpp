#include "check.h"

namespace hexad {
namespace {
thread_local char error_text[512] = "";
}

void set_error(const char* text) {
  snprintf(error_text, sizeof error_text, "%s", text);
}

void fail(hexad_status status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(error_text, sizeof error_text, format, args);
  va_end(args);
  throw Failure{status};
}

DType dtype_of(const hexad_tensor& t) {
  if (t.dtype_lanes != 1) return DType::other;
  switch (t.dtype_code << 8 | t.dtype_bits) {
    case 2 << 8 | 32:
      return DType::f32;
    case 4 << 8 | 16:
      return DType::bf16;
    case 2 << 8 | 16:
      return DType::f16;
    case 2 << 8 | 64:
      return DType::f64;
    case 0 << 8 | 32:
      return DType::i32;
    case 0 << 8 | 64:
      return DType::i64;
    case 6 << 8 | 8:
      return DType::boolean;
    default:
      return DType::other;
  }
}

const char* name_of(DType d) {
  switch (d) {
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::f64:
      return "float64";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::boolean:
      return "bool";
    default:
      return "an unknown dtype";
  }
}

void require_rank(const hexad_tensor* t, const char* name, int rank) {
  HEXAD_REQUIRE(t, "%s: missing", name);
  HEXAD_REQUIRE(t->ndim == rank, "%s: has %d dimensions, wants %d", name, t->ndim, rank);
}

void require_dtype(const hexad_tensor& t, const char* name, DType want) {
  HEXAD_REQUIRE(dtype_of(t) == want, "%s: is %s, wants %s", name, name_of(dtype_of(t)),
                name_of(want));
}

void require_size(const hexad_tensor& t, const char* name, int dim, int64_t want) {
  HEXAD_REQUIRE(t.shape[dim] == want, "%s: dimension %d is %lld, wants %lld", name, dim,
                (long long)t.shape[dim], (long long)want);
}

void require_rows(const hexad_tensor& t, const char* name) {
  const int last = t.ndim - 1;
  HEXAD_REQUIRE(t.shape[last] <= 1 || stride(t, last) == 1 || numel(t) == 0,
                "%s: the last dimension has stride %lld, wants 1", name,
                (long long)stride(t, last));
}

void require_packed(const hexad_tensor& t, const char* name, int from) {
  if (numel(t) == 0) return;
  int64_t packed = 1;
  for (int i = t.ndim - 1; i >= from; --i) {
    HEXAD_REQUIRE(t.shape[i] <= 1 || stride(t, i) == packed,
                  "%s: dimension %d has stride %lld, wants %lld", name, i, (long long)stride(t, i),
                  (long long)packed);
    packed *= t.shape[i];
  }
}

void require_device(const hexad_tensor& t, const char* name, const hexad_tensor& like) {
  HEXAD_REQUIRE(t.device_type == like.device_type && t.device_id == like.device_id,
                "%s: is on device (%d, %d), the first tensor on (%d, %d)", name, t.device_type,
                t.device_id, like.device_type, like.device_id);
}

}  // namespace hexad

extern "C" int hexad_abi_version(void) {
  return HEXAD_ABI_VERSION;
}
extern "C" const char* hexad_last_error(void) {
  return hexad::error_text;
}
