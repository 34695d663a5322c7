#include "op/linear_packed.h"

#include "api/rows.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_linear_packed(const hexad_tensor* x, const hexad_tensor* panels,
                                            const hexad_tensor* bias, const hexad_tensor* residual,
                                            hexad_tensor* y, hexad_tensor* workspace,
                                            int32_t activation, int32_t form, hexad_stream stream) {
  return guarded([&] {
    const Rows in = rows_of(x, "x"), out = rows_of(y, "y");
    const DType dtype = require_float(*x, "x", on_cuda(*x));
    require_dtype(*y, "y", dtype);
    require_device(*y, "y", *x);
    require_distinct(*y, "y");
    HEXAD_REQUIRE(out.count == in.count, "y: has %lld rows, wants x's %lld", (long long)out.count,
                  (long long)in.count);
    HEXAD_REQUIRE(activation >= 0 && activation <= 8, "activation: is %d, wants 0 to 8",
                  activation);
    HEXAD_REQUIRE(form >= kPackedFloat && form <= kPackedInt4, "form: is %d, wants 0 to 3", form);
    const bool gate = activation >= 7;
    const int64_t outputs = gate ? 2 * out.size : out.size;
    HEXAD_REQUIRE(!gate || out.size % 16 == 0,
                  "y: has %lld columns, gated packed weights want a multiple of 16",
                  (long long)out.size);
    require_rank(panels, "panels", 2);
    require_dtype(*panels, "panels", DType::i32);
    require_device(*panels, "panels", *x);
    require_contiguous(*panels, "panels");
    require_size(*panels, "panels", 0, (outputs + 15) / 16);
    require_size(*panels, "panels", 1, panel_words(form, in.size));
    if (bias) {
      require_rank(bias, "bias", 1);
      require_dtype(*bias, "bias", dtype);
      require_device(*bias, "bias", *x);
      require_size(*bias, "bias", 0, outputs);
      require_rows(*bias, "bias");
    }
    Rows rest{};
    if (residual) {
      rest = rows_of(residual, "residual");
      require_dtype(*residual, "residual", dtype);
      require_device(*residual, "residual", *x);
      HEXAD_REQUIRE(rest.count == out.count && rest.size == out.size,
                    "residual: is %lld x %lld, wants y's %lld x %lld", (long long)rest.count,
                    (long long)rest.size, (long long)out.count, (long long)out.size);
    }
    const int64_t words = on_cuda(*x) ? 0 : workspace_words(form, in.size);
    if (words && in.count) {
      require_rank(workspace, "workspace", 2);
      require_dtype(*workspace, "workspace", DType::i32);
      require_device(*workspace, "workspace", *x);
      require_contiguous(*workspace, "workspace");
      require_size(*workspace, "workspace", 0, in.count);
      require_size(*workspace, "workspace", 1, words);
    }
    const LinearArgs linear{data<void>(*x),
                            data<void>(*panels),
                            bias ? data<void>(*bias) : nullptr,
                            residual ? data<void>(*residual) : nullptr,
                            data<void>(*y),
                            dtype == DType::bf16,
                            in.count,
                            in.size,
                            outputs,
                            in.stride,
                            panels->shape[1],
                            rest.stride,
                            out.stride,
                            activation,
                            dtype == DType::f16};
    const LinearPackedArgs args{linear, form,
                                words && in.count ? data<int32_t>(*workspace) : nullptr};
    on_cuda(*x) ? cuda::linear_packed(args, stream) : cpu().linear_packed(args);
  });
}
