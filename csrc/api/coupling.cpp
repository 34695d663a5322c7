#include "op/coupling.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_coupling(const hexad_tensor* x, const hexad_tensor* shift,
                                       const hexad_tensor* log_scale, hexad_tensor* y,
                                       hexad_tensor* log_det, int32_t inverse, int32_t split,
                                       int32_t flip, int64_t active_begin, int64_t height,
                                       int64_t width, int32_t scale_map, float clamp,
                                       hexad_stream stream) {
  return guarded([&] {
    require_rank(x, "x", 2);
    require_rank(shift, "shift", 2);
    require_rank(y, "y", 2);
    require_rank(log_det, "log_det", 1);
    const DType dtype = dtype_of(*x);
    HEXAD_REQUIRE(dtype == DType::f32 || dtype == DType::bf16,
                  "x: is %s, wants float32 or bfloat16", name_of(dtype));
    const int64_t batch = x->shape[0], row = x->shape[1], active = shift->shape[1];
    require_size(*y, "y", 0, batch);
    require_size(*y, "y", 1, row);
    require_size(*log_det, "log_det", 0, batch);
    require_dtype(*log_det, "log_det", DType::f32);
    const hexad_tensor* tensors[] = {x, shift, y, log_scale};
    const char* names[] = {"x", "shift", "y", "log_scale"};
    for (int i = 0; i < 4; ++i) {
      if (!tensors[i]) continue;
      require_dtype(*tensors[i], names[i], dtype);
      require_rows(*tensors[i], names[i]);
      require_size(*tensors[i], names[i], 0, batch);
      require_device(*tensors[i], names[i], *x);
    }
    require_device(*log_det, "log_det", *x);
    require_rows(*log_det, "log_det");
    HEXAD_REQUIRE(split == 0 || split == 1, "split: is %d, wants 0 or 1", split);
    HEXAD_REQUIRE(scale_map >= 0 && scale_map <= 2, "scale_map: is %d, wants 0, 1 or 2", scale_map);
    if (log_scale) {
      require_rank(log_scale, "log_scale", 2);
      require_size(*log_scale, "log_scale", 1, active);
    }
    if (split == 0) {
      HEXAD_REQUIRE(active_begin >= 0 && active_begin + active <= row,
                    "shift: %lld columns from %lld do not fit a row of %lld", (long long)active,
                    (long long)active_begin, (long long)row);
    } else {
      HEXAD_REQUIRE(active == row, "shift: has %lld columns, wants x's %lld", (long long)active,
                    (long long)row);
      HEXAD_REQUIRE(height > 0 && width > 0 && row % (height * width) == 0,
                    "height, width: %lld x %lld do not tile a row of %lld", (long long)height,
                    (long long)width, (long long)row);
    }
    const CouplingArgs args{data<void>(*x),
                            data<void>(*shift),
                            log_scale ? data<void>(*log_scale) : nullptr,
                            data<void>(*y),
                            data<float>(*log_det),
                            dtype == DType::bf16,
                            batch,
                            row,
                            stride(*x, 0),
                            stride(*y, 0),
                            stride(*shift, 0),
                            log_scale ? stride(*log_scale, 0) : 0,
                            active_begin,
                            active,
                            split == 1,
                            flip != 0,
                            height,
                            width,
                            inverse != 0,
                            scale_map,
                            clamp};
    if (on_cuda(*x)) return cuda::coupling(args, stream);
    cpu().coupling(args);
  });
}
