#include "op/invconv.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_invconv(const hexad_tensor* x, const hexad_tensor* weight,
                                      const hexad_tensor* bias, hexad_tensor* y,
                                      hexad_stream stream) {
  return guarded([&] {
    require_tensor(x, "x", 2);
    require_rank(weight, "weight", 2);
    require_tensor(y, "y");
    const DType dtype = require_float(*x, "x");
    require_dtype(*y, "y", dtype);
    require_dtype(*weight, "weight", DType::f32);
    const int64_t channels = x->shape[1];
    HEXAD_REQUIRE(channels <= kInvconvChannels, "x: has %lld channels, wants at most %lld",
                  (long long)channels, (long long)kInvconvChannels);
    require_shape(*y, "y", *x);
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
    if (numel(*x) == 0) return;
    const InvconvArgs args{data<void>(*x),
                           data<float>(*weight),
                           bias ? data<float>(*bias) : nullptr,
                           data<void>(*y),
                           dtype == DType::bf16,
                           x->shape[0],
                           channels,
                           numel(*x) / (x->shape[0] * channels)};
    if (on_cuda(*x)) return cuda::invconv(args, stream);
    cpu().invconv(args);
  });
}
