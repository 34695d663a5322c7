#include "op/invconv.h"

#include "api/contiguous.h"
#include "cpu/table.h"

using namespace hexad;

extern "C" hexad_status hexad_invconv(const hexad_tensor* x, const hexad_tensor* weight,
                                      const hexad_tensor* bias, hexad_tensor* y,
                                      hexad_stream stream) {
  (void)stream;
  return guarded([&] {
    HEXAD_REQUIRE(x, "x: missing");
    HEXAD_REQUIRE(x->ndim >= 2, "x: has %d dimensions, wants 2 or more", x->ndim);
    require_rank(weight, "weight", 2);
    require_rank(y, "y", x->ndim);
    const DType dtype = dtype_of(*x);
    HEXAD_REQUIRE(dtype == DType::f32 || dtype == DType::bf16,
                  "x: is %s, wants float32 or bfloat16", name_of(dtype));
    require_dtype(*y, "y", dtype);
    require_dtype(*weight, "weight", DType::f32);
    const int64_t channels = x->shape[1];
    HEXAD_REQUIRE(channels <= kInvconvChannels, "x: has %lld channels, wants at most %lld",
                  (long long)channels, (long long)kInvconvChannels);
    for (int d = 0; d < x->ndim; ++d) require_size(*y, "y", d, x->shape[d]);
    for (int d = 0; d < 2; ++d) require_size(*weight, "weight", d, channels);
    require_contiguous(*x, "x");
    require_contiguous(*weight, "weight");
    require_contiguous(*y, "y");
    require_device(*weight, "weight", *x);
    require_device(*y, "y", *x);
    if (bias) {
      require_rank(bias, "bias", 1);
      require_dtype(*bias, "bias", DType::f32);
      require_size(*bias, "bias", 0, channels);
      require_contiguous(*bias, "bias");
      require_device(*bias, "bias", *x);
    }
    if (on_cuda(*x)) fail(HEXAD_UNSUPPORTED, "invconv has no CUDA kernel");
    if (numel(*x) == 0) return;
    cpu().invconv({data<void>(*x), data<float>(*weight), bias ? data<float>(*bias) : nullptr,
                   data<void>(*y), dtype == DType::bf16, x->shape[0], channels,
                   numel(*x) / (x->shape[0] * channels)});
  });
}
