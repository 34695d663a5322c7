// What decode and append_kv ask of a cache: k and v (P, Hkv, page, D or Dv), in the dtype of the
// other tensors, or int8 or float8 with a float32 scale for each slot and head.
#pragma once

#include "api/heads.h"

namespace hexad {

inline bool quantised(DType dtype) {
  return dtype == DType::i8 || dtype == DType::e4m3 || dtype == DType::e5m2;
}

// As kernels know it; the CPU's have no float8.
inline int float8_kind(DType cache, bool on_cuda, const char* op) {
  const int kind = cache == DType::e4m3 ? 1 : cache == DType::e5m2 ? 2 : 0;
  if (kind && !on_cuda) fail(HEXAD_UNSUPPORTED, "%s: a float8 cache has no CPU kernel", op);
  return kind;
}

// The scales that a quantised cache has and no other.
inline void require_scales(const hexad_tensor& cache, const hexad_tensor* scale, const char* name) {
  const DType dtype = dtype_of(cache);
  HEXAD_REQUIRE(quantised(dtype) || !scale, "%s: given, but the cache is %s, not int8 or float8",
                name, name_of(dtype));
  if (!quantised(dtype)) return;
  require_rank(scale, name, 3);
  require_dtype(*scale, name, DType::f32);
  require_device(*scale, name, cache);
  for (int i = 0; i < 3; ++i) require_size(*scale, name, i, cache.shape[i]);
}

// The cache's dtype; `like` has the one that it has if it is not quantised.
inline DType require_cache(const hexad_tensor& k_cache, const hexad_tensor& v_cache,
                           const hexad_tensor* k_scale, const hexad_tensor* v_scale,
                           const hexad_tensor& like) {
  const hexad_tensor* tensors[] = {&k_cache, &v_cache};
  const char* names[] = {"k_cache", "v_cache"};
  const DType dtype = quantised(dtype_of(k_cache)) ? dtype_of(k_cache) : dtype_of(like);
  require_scales(k_cache, k_scale, "k_scale");
  for (int i = 0; i < 2; ++i) {
    require_dtype(*tensors[i], names[i], dtype);
    require_rows(*tensors[i], names[i]);
    require_device(*tensors[i], names[i], like);
  }
  require_scales(v_cache, v_scale, "v_scale");
  for (int i = 0; i < 3; ++i) require_size(v_cache, "v_cache", i, k_cache.shape[i]);
  return dtype;
}

}  // namespace hexad
