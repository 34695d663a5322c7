#include "api/coupling.h"

#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_coupling(const hexad_tensor* x, const hexad_tensor* shift,
                                       const hexad_tensor* log_scale, hexad_tensor* y,
                                       hexad_tensor* log_det, hexad_tensor* partials,
                                       hexad_tensor* counters, int32_t inverse, int32_t split,
                                       int32_t flip, int32_t scale_map, float clamp,
                                       hexad_stream stream) {
  return guarded([&] {
    CouplingArgs args{};
    const CouplingCall call(x, "x", inverse, split, flip, scale_map, clamp, args);
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
    if (on_cuda(*x)) {
      const int64_t pieces = coupling_pieces(args);
      if (log_scale && pieces > 1) {
        args.partials = call.scratch<double>(partials, "partials", DType::f64, args.batch * pieces);
        args.counters = call.scratch<int32_t>(counters, "counters", DType::i32, args.batch);
      }
      return cuda::coupling(args, stream);
    }
    cpu().coupling(args);
  });
}
