// What decode and append_kv ask of a cache: k and v (P, Hkv, page, D or Dv), in the dtype of the
// other tensors, or int8 with a float32 scale for each slot and head.
#pragma once

#include "api/heads.h"

namespace hexad {

// The scales that an int8 cache has and no other: whether it is one.
inline bool require_scales(const hexad_tensor& cache, const hexad_tensor* scale, const char* name) {
  const bool int8 = dtype_of(cache) == DType::i8;
  HEXAD_REQUIRE(int8 || !scale, "%s: given, but the cache is %s, not int8", name,
                name_of(dtype_of(cache)));
  if (!int8) return false;
  require_rank(scale, name, 3);
  require_dtype(*scale, name, DType::f32);
  require_device(*scale, name, cache);
  for (int i = 0; i < 3; ++i) require_size(*scale, name, i, cache.shape[i]);
  return true;
}

// Whether the cache is int8; `like` has the dtype that it has if not.
inline bool require_cache(const hexad_tensor& k_cache, const hexad_tensor& v_cache,
                          const hexad_tensor* k_scale, const hexad_tensor* v_scale,
                          const hexad_tensor& like) {
  const hexad_tensor* tensors[] = {&k_cache, &v_cache};
  const char* names[] = {"k_cache", "v_cache"};
  const bool int8 = require_scales(k_cache, k_scale, "k_scale");
  for (int i = 0; i < 2; ++i) {
    require_dtype(*tensors[i], names[i], int8 ? DType::i8 : dtype_of(like));
    require_rows(*tensors[i], names[i]);
    require_device(*tensors[i], names[i], like);
  }
  require_scales(v_cache, v_scale, "v_scale");
  for (int i = 0; i < 3; ++i) require_size(v_cache, "v_cache", i, k_cache.shape[i]);
  return int8;
}

}  // namespace hexad
