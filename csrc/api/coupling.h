// What the doors of coupling and coupling_backward check alike.
#pragma once

#include "check.h"
#include "op/coupling.h"

namespace hexad {

// x and the options of a call, and what its other tensors have to be like.
struct CouplingCall {
  const hexad_tensor* x;
  DType dtype;
  int64_t channels, active;

  CouplingCall(const hexad_tensor* x, const char* name, int32_t inverse, int32_t split,
               int32_t flip, int32_t scale_map, float clamp, CouplingMap& map)
      : x(x) {
    require_tensor(x, name, 2);
    HEXAD_REQUIRE(split == 0 || split == 1, "split: is %d, wants 0 or 1", split);
    HEXAD_REQUIRE(scale_map >= 0 && scale_map <= 2, "scale_map: is %d, wants 0, 1 or 2", scale_map);
    HEXAD_REQUIRE(split == 0 || x->ndim == 2 || x->ndim == 4,
                  "%s: has %d dimensions, wants 2 or 4 for a checkerboard split", name, x->ndim);
    dtype = require_float(*x, name);
    channels = x->shape[1];
    active = split ? channels : flip ? channels - channels / 2 : channels / 2;
    int64_t spatial = 1;
    for (int i = 2; i < x->ndim; ++i) spatial *= x->shape[i];
    map.bf16 = dtype == DType::bf16;
    map.batch = x->shape[0];
    map.row = channels * spatial;
    map.active_begin = split || flip ? 0 : (channels - channels / 2) * spatial;
    map.active = active * spatial;
    map.checkerboard = split == 1;
    map.height = x->ndim == 4 ? x->shape[2] : 1;
    map.width = x->ndim == 4 ? x->shape[3] : map.row;
    if (map.row == 0) map.height = map.width = 1;  // they divide
    map.flip = flip != 0;
    map.inverse = inverse != 0;
    map.scale_map = scale_map;
    map.clamp = clamp;
  }

  // Checks a tensor of x's sizes but `want` channels; the stride from one batch row to the next.
  int64_t operand(const hexad_tensor* t, const char* name, int64_t want) const {
    require_rank(t, name, x->ndim);
    require_dtype(*t, name, dtype);
    require_device(*t, name, *x);
    require_size(*t, name, 1, want);
    for (int i = 0; i < x->ndim; i += i == 0 ? 2 : 1) require_size(*t, name, i, x->shape[i]);
    require_packed(*t, name, 1);
    return stride(*t, 0);
  }
  void log_det(const hexad_tensor* t, const char* name) const {
    require_rank(t, name, 1);
    require_size(*t, name, 0, x->shape[0]);
    require_dtype(*t, name, DType::f32);
    require_device(*t, name, *x);
    require_contiguous(*t, name);
  }
  template <class T>
  T* scratch(const hexad_tensor* t, const char* name, DType dtype, int64_t least) const {
    require_rank(t, name, 1);
    require_dtype(*t, name, dtype);
    require_device(*t, name, *x);
    require_contiguous(*t, name);
    HEXAD_REQUIRE(t->shape[0] >= least, "%s: has %lld elements, wants %lld", name,
                  (long long)t->shape[0], (long long)least);
    return data<T>(*t);
  }
  void* output(hexad_tensor* t, const char* name, int64_t want) const {
    if (!t) return nullptr;
    operand(t, name, want);
    require_contiguous(*t, name);
    return data<void>(*t);
  }
};

}  // namespace hexad
