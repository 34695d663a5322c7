#include "op/coupling.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_coupling(const hexad_tensor* x, const hexad_tensor* shift,
                                       const hexad_tensor* log_scale, hexad_tensor* y,
                                       hexad_tensor* log_det, int32_t inverse, int32_t split,
                                       int32_t flip, int32_t scale_map, float clamp,
                                       hexad_stream stream) {
  return guarded([&] {
    require_tensor(x, "x", 2);
    HEXAD_REQUIRE(split == 0 || split == 1, "split: is %d, wants 0 or 1", split);
    HEXAD_REQUIRE(scale_map >= 0 && scale_map <= 2, "scale_map: is %d, wants 0, 1 or 2", scale_map);
    const DType dtype = require_float(*x, "x");
    const int64_t batch = x->shape[0], channels = x->shape[1];
    const int64_t active = split ? channels : flip ? channels - channels / 2 : channels / 2;
    int64_t spatial = 1;
    for (int i = 2; i < x->ndim; ++i) spatial *= x->shape[i];

    const auto operand = [&](const hexad_tensor* t, const char* name, int64_t want) {
      require_rank(t, name, x->ndim);
      require_dtype(*t, name, dtype);
      require_device(*t, name, *x);
      require_size(*t, name, 1, want);
      for (int i = 0; i < x->ndim; i += i == 0 ? 2 : 1) require_size(*t, name, i, x->shape[i]);
      require_packed(*t, name, 1);
      return stride(*t, 0);
    };
    CouplingArgs args{};
    args.x_stride = operand(x, "x", channels);
    args.y_stride = operand(y, "y", channels);
    args.shift_stride = operand(shift, "shift", active);
    if (log_scale) args.scale_stride = operand(log_scale, "log_scale", active);
    require_rank(log_det, "log_det", 1);
    require_size(*log_det, "log_det", 0, batch);
    require_dtype(*log_det, "log_det", DType::f32);
    require_device(*log_det, "log_det", *x);
    require_contiguous(*log_det, "log_det");
    require_distinct(*y, "y");

    args.x = data<void>(*x);
    args.shift = data<void>(*shift);
    args.log_scale = log_scale ? data<void>(*log_scale) : nullptr;
    args.y = data<void>(*y);
    args.log_det = data<float>(*log_det);
    args.bf16 = dtype == DType::bf16;
    args.batch = batch;
    args.row = channels * spatial;
    args.active_begin = split || flip ? 0 : (channels - channels / 2) * spatial;
    args.active = active * spatial;
    args.checkerboard = split == 1;
    args.height = x->ndim == 4 ? x->shape[2] : 1;
    args.width = x->ndim == 4 ? x->shape[3] : args.row;
    if (args.row == 0) args.height = args.width = 1;  // they divide
    args.flip = flip != 0;
    args.inverse = inverse != 0;
    args.scale_map = scale_map;
    args.clamp = clamp;
    HEXAD_REQUIRE(!args.checkerboard || x->ndim == 2 || x->ndim == 4,
                  "x: has %d dimensions, wants 2 or 4 for a checkerboard split", x->ndim);
    if (on_cuda(*x)) return cuda::coupling(args, stream);
    cpu().coupling(args);
  });
}
