#include "op/linear.h"

#include "api/rows.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_linear(const hexad_tensor* x, const hexad_tensor* weight,
                                     const hexad_tensor* bias, const hexad_tensor* residual,
                                     hexad_tensor* y, int32_t activation, hexad_stream stream) {
  return guarded([&] {
    const Rows in = rows_of(x, "x"), w = rows_of(weight, "weight"), out = rows_of(y, "y");
    const DType dtype = require_float(*x, "x", on_cuda(*x));
    const hexad_tensor* tensors[] = {weight, bias, residual, y};
    const char* names[] = {"weight", "bias", "residual", "y"};
    for (int i = 0; i < 4; ++i) {
      if (!tensors[i]) continue;
      require_tensor(tensors[i], names[i]);
      require_dtype(*tensors[i], names[i], dtype);
      require_device(*tensors[i], names[i], *x);
    }
    require_rank(weight, "weight", 2);
    require_size(*weight, "weight", 1, in.size);
    HEXAD_REQUIRE(activation >= 0 && activation <= 8, "activation: is %d, wants 0 to 8",
                  activation);
    const bool gate = activation >= 7;
    HEXAD_REQUIRE(!gate || w.count % 2 == 0, "weight: has %lld rows, a gate wants an even number",
                  (long long)w.count);
    require_size(*y, "y", y->ndim - 1, gate ? w.count / 2 : w.count);
    require_distinct(*y, "y");
    HEXAD_REQUIRE(out.count == in.count, "y: has %lld rows, wants x's %lld", (long long)out.count,
                  (long long)in.count);
    if (bias) {
      require_rank(bias, "bias", 1);
      require_size(*bias, "bias", 0, w.count);
      require_rows(*bias, "bias");
    }
    Rows rest{};
    if (residual) {
      rest = rows_of(residual, "residual");
      HEXAD_REQUIRE(rest.count == out.count && rest.size == out.size,
                    "residual: is %lld x %lld, wants y's %lld x %lld", (long long)rest.count,
                    (long long)rest.size, (long long)out.count, (long long)out.size);
    }
    const LinearArgs args{data<void>(*x),
                          data<void>(*weight),
                          bias ? data<void>(*bias) : nullptr,
                          residual ? data<void>(*residual) : nullptr,
                          data<void>(*y),
                          dtype == DType::bf16,
                          in.count,
                          in.size,
                          w.count,
                          in.stride,
                          w.stride,
                          rest.stride,
                          out.stride,
                          activation,
                          dtype == DType::f16};
    on_cuda(*x) ? cuda::linear(args, stream) : cpu().linear(args);
  });
}
