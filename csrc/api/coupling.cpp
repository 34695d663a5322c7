#include "op/coupling.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

namespace {

// x and the options of a call, and what its other tensors have to be like.
struct Call {
  const hexad_tensor* x;
  DType dtype;
  int64_t channels, active;

  Call(const hexad_tensor* x, const char* name, int32_t inverse, int32_t split, int32_t flip,
       int32_t scale_map, float clamp, CouplingMap& map)
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
  void* output(hexad_tensor* t, const char* name, int64_t want) const {
    if (!t) return nullptr;
    operand(t, name, want);
    require_contiguous(*t, name);
    return data<void>(*t);
  }
};

}  // namespace

extern "C" hexad_status hexad_coupling(const hexad_tensor* x, const hexad_tensor* shift,
                                       const hexad_tensor* log_scale, hexad_tensor* y,
                                       hexad_tensor* log_det, int32_t inverse, int32_t split,
                                       int32_t flip, int32_t scale_map, float clamp,
                                       hexad_stream stream) {
  return guarded([&] {
    CouplingArgs args{};
    const Call call(x, "x", inverse, split, flip, scale_map, clamp, args);
    args.x_stride = call.operand(x, "x", call.channels);
    args.y_stride = call.operand(y, "y", call.channels);
    args.shift_stride = call.operand(shift, "shift", call.active);
    if (log_scale) args.scale_stride = call.operand(log_scale, "log_scale", call.active);
    call.log_det(log_det, "log_det");
    require_distinct(*y, "y");

    args.x = data<void>(*x);
    args.shift = data<void>(*shift);
    args.log_scale = log_scale ? data<void>(*log_scale) : nullptr;
    args.y = data<void>(*y);
    args.log_det = data<float>(*log_det);
    if (on_cuda(*x)) return cuda::coupling(args, stream);
    cpu().coupling(args);
  });
}

extern "C" hexad_status hexad_coupling_backward(
    const hexad_tensor* grad_y, const hexad_tensor* grad_log_det, const hexad_tensor* value,
    const hexad_tensor* shift, const hexad_tensor* log_scale, hexad_tensor* grad_x,
    hexad_tensor* grad_shift, hexad_tensor* grad_scale, int32_t from_input, int32_t inverse,
    int32_t split, int32_t flip, int32_t scale_map, float clamp, hexad_stream) {
  return guarded([&] {
    CouplingBackwardArgs args{};
    const Call call(value, "value", inverse, split, flip, scale_map, clamp, args);
    args.value_stride = call.operand(value, "value", call.channels);
    args.shift_stride = call.operand(shift, "shift", call.active);
    if (log_scale) args.scale_stride = call.operand(log_scale, "log_scale", call.active);
    if (grad_y) args.grad_y_stride = call.operand(grad_y, "grad_y", call.channels);
    if (grad_log_det) call.log_det(grad_log_det, "grad_log_det");
    HEXAD_REQUIRE(log_scale || !grad_scale, "grad_scale: there is no log_scale");

    args.value = data<void>(*value);
    args.shift = data<void>(*shift);
    args.log_scale = log_scale ? data<void>(*log_scale) : nullptr;
    args.grad_y = grad_y ? data<void>(*grad_y) : nullptr;
    args.grad_log_det = grad_log_det ? data<float>(*grad_log_det) : nullptr;
    args.grad_x = call.output(grad_x, "grad_x", call.channels);
    args.grad_shift = call.output(grad_shift, "grad_shift", call.active);
    args.grad_scale = call.output(grad_scale, "grad_scale", call.active);
    args.from_input = from_input != 0;
    require_cpu(*value, "coupling_backward");
    cpu().coupling_backward(args);
  });
}
