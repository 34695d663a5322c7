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
    case 0 << 8 | 8:
      return DType::i8;
    case 0 << 8 | 32:
      return DType::i32;
    case 0 << 8 | 64:
      return DType::i64;
    case 6 << 8 | 8:
      return DType::boolean;
    case 10 << 8 | 8:
      return DType::e4m3;
    case 12 << 8 | 8:
      return DType::e5m2;
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
    case DType::i8:
      return "int8";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::boolean:
      return "bool";
    case DType::e4m3:
      return "float8_e4m3fn";
    case DType::e5m2:
      return "float8_e5m2";
    default:
      return "an unknown dtype";
  }
}

void require_tensor(const hexad_tensor* t, const char* name, int least_rank) {
  HEXAD_REQUIRE(t, "%s: missing", name);
  HEXAD_REQUIRE(t->ndim >= least_rank, "%s: has %d dimensions, wants %d or more", name, t->ndim,
                least_rank);
  int64_t most = 1;
  bool empty = false;
  for (int i = 0; i < t->ndim; ++i) {
    const int64_t size = t->shape[i];
    HEXAD_REQUIRE(size >= 0, "%s: dimension %d is %lld, wants at least 0", name, i,
                  (long long)size);
    HEXAD_REQUIRE(size <= kMostElements / most, "%s: has more than 2^60 elements", name);
    if (size) most *= size;
    empty = empty || !size;
  }
  if (empty) return;
  HEXAD_REQUIRE(t->data, "%s: has no memory", name);
  const auto address = reinterpret_cast<uintptr_t>(t->data) + t->byte_offset;
  const unsigned bytes = t->dtype_bits < 8 ? 1 : t->dtype_bits / 8;
  HEXAD_REQUIRE(address % bytes == 0, "%s: starts off a multiple of its element's %u bytes", name,
                bytes);
}

void require_rank(const hexad_tensor* t, const char* name, int rank) {
  require_tensor(t, name);
  HEXAD_REQUIRE(t->ndim == rank, "%s: has %d dimensions, wants %d", name, t->ndim, rank);
}

DType require_float(const hexad_tensor& t, const char* name, bool half) {
  const DType dtype = dtype_of(t);
  if (half && dtype == DType::f16) return dtype;
  HEXAD_REQUIRE(dtype == DType::f32 || dtype == DType::bf16, "%s: is %s, wants float32 or bfloat16",
                name, name_of(dtype));
  return dtype;
}

void require_dtype(const hexad_tensor& t, const char* name, DType want) {
  HEXAD_REQUIRE(dtype_of(t) == want, "%s: is %s, wants %s", name, name_of(dtype_of(t)),
                name_of(want));
}

void require_size(const hexad_tensor& t, const char* name, int dim, int64_t want) {
  HEXAD_REQUIRE(t.shape[dim] == want, "%s: dimension %d is %lld, wants %lld", name, dim,
                (long long)t.shape[dim], (long long)want);
}

void require_shape(const hexad_tensor& t, const char* name, const hexad_tensor& like) {
  HEXAD_REQUIRE(t.ndim == like.ndim, "%s: has %d dimensions, wants %d", name, t.ndim, like.ndim);
  for (int i = 0; i < t.ndim; ++i) require_size(t, name, i, like.shape[i]);
}

void require_rows(const hexad_tensor& t, const char* name) {
  const int last = t.ndim - 1;
  HEXAD_REQUIRE(t.shape[last] <= 1 || stride(t, last) == 1 || numel(t) == 0,
                "%s: the last dimension has stride %lld, wants 1", name,
                (long long)stride(t, last));
}

namespace {

// The last dimension at or after `from` whose stride is not what packing asks for; -1: none.
int loose_dimension(const hexad_tensor& t, int from, int64_t* want) {
  *want = 1;
  if (!t.strides || numel(t) == 0) return -1;
  for (int i = t.ndim - 1; i >= from; *want *= t.shape[i--])
    if (t.shape[i] != 1 && t.strides[i] != *want) return i;
  return -1;
}

}  // namespace

bool is_contiguous(const hexad_tensor& t) {
  int64_t want;
  return loose_dimension(t, 0, &want) < 0;
}

void require_packed(const hexad_tensor& t, const char* name, int from) {
  int64_t want;
  const int i = loose_dimension(t, from, &want);
  HEXAD_REQUIRE(i < 0, "%s: dimension %d has stride %lld, wants %lld", name, i,
                (long long)stride(t, i), (long long)want);
}

void require_distinct(const hexad_tensor& t, const char* name) {
  if (!t.strides || numel(t) == 0) return;
  for (int i = 0; i < t.ndim; ++i)
    HEXAD_REQUIRE(t.shape[i] == 1 || t.strides[i] != 0,
                  "%s: dimension %d has stride 0, wants elements of its own", name, i);
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
