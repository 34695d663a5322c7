#include "op/coupling_backward.h"

#include "api/coupling.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_coupling_backward(
    const hexad_tensor* grad_y, const hexad_tensor* grad_log_det, const hexad_tensor* value,
    const hexad_tensor* shift, const hexad_tensor* log_scale, hexad_tensor* grad_x,
    hexad_tensor* grad_shift, hexad_tensor* grad_scale, int32_t from_input, int32_t inverse,
    int32_t split, int32_t flip, int32_t scale_map, float clamp, hexad_stream stream) {
  return guarded([&] {
    CouplingBackwardArgs args{};
    const CouplingCall call(value, "value", inverse, split, flip, scale_map, clamp, args);
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
    if (on_cuda(*value)) return cuda::coupling_backward(args, stream);
    cpu().coupling_backward(args);
  });
}
