#include "op/norm.h"

#include "api/rows.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_norm(const hexad_tensor* x, const hexad_tensor* weight,
                                   const hexad_tensor* bias, const hexad_tensor* scale,
                                   const hexad_tensor* shift, hexad_tensor* y, int32_t kind,
                                   double eps, int64_t num_groups, int32_t activation,
                                   hexad_stream stream) {
  return guarded([&] {
    HEXAD_REQUIRE(kind >= 0 && kind <= 2, "kind: is %d, wants 0, 1 or 2", kind);
    HEXAD_REQUIRE(activation == 0 || activation == 1, "activation: is %d, wants 0 or 1",
                  activation);
    HEXAD_REQUIRE(eps >= 0, "eps: is %g, wants a number >= 0", eps);
    Rows in = rows_of(x, "x"), out = rows_of(y, "y");
    const DType dtype = require_float(*x, "x");
    require_shape(*y, "y", *x);
    require_distinct(*y, "y");
    require_dtype(*y, "y", dtype);
    require_device(*y, "y", *x);

    const int64_t batch = x->ndim > 1 ? x->shape[0] : 1;
    int64_t features = in.size, spatial = 1;
    if (kind == 2) {
      HEXAD_REQUIRE(x->ndim >= 2, "x: has %d dimensions, wants at least 2", x->ndim);
      require_contiguous(*x, "x");
      require_contiguous(*y, "y");
      features = x->shape[1];
      HEXAD_REQUIRE(num_groups > 0 && features % num_groups == 0,
                    "num_groups: is %lld, wants a divisor of %lld", (long long)num_groups,
                    (long long)features);
      for (int i = 2; i < x->ndim; ++i) spatial *= x->shape[i];
      const int64_t row = features / num_groups * spatial;
      in = out = {batch * num_groups, row, row};
    }

    const hexad_tensor* vectors[] = {weight, bias, scale, shift};
    const char* names[] = {"weight", "bias", "scale", "shift"};
    for (int i = 0; i < 4; ++i) {
      const hexad_tensor* t = vectors[i];
      if (!t) continue;
      const bool matrix = i >= 2;
      require_rank(t, names[i], matrix ? 2 : 1);
      require_dtype(*t, names[i], dtype);
      require_device(*t, names[i], *x);
      require_rows(*t, names[i]);
      require_size(*t, names[i], matrix ? 1 : 0, features);
      if (matrix) require_size(*t, names[i], 0, batch);
    }
    if (numel(*x) == 0) return;
    const auto start = [](const hexad_tensor* t) { return t ? data<void>(*t) : nullptr; };
    const NormArgs args{data<void>(*x),
                        start(weight),
                        start(bias),
                        start(scale),
                        start(shift),
                        data<void>(*y),
                        dtype == DType::bf16,
                        kind == 1,
                        activation == 1,
                        in.count,
                        in.size,
                        in.stride,
                        out.stride,
                        spatial,
                        features,
                        in.count / batch,
                        scale ? stride(*scale, 0) : 0,
                        shift ? stride(*shift, 0) : 0,
                        eps};
    if (on_cuda(*x)) return cuda::norm(args, stream);
    cpu().norm(args);
  });
}
