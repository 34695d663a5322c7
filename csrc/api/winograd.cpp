#include "op/winograd.h"

#include "api/rows.h"
#include "cpu/table.h"

using namespace hexad;

extern "C" hexad_status hexad_winograd(const hexad_tensor* x, const hexad_tensor* taps,
                                       const hexad_tensor* bias, hexad_tensor* y,
                                       hexad_tensor* workspace, hexad_stream) {
  return guarded([&] {
    require_rank(x, "x", 4);
    require_rank(taps, "taps", 4);
    require_rank(y, "y", 4);
    require_rank(workspace, "workspace", 1);
    require_dtype(*x, "x", DType::f32);
    const hexad_tensor* tensors[] = {taps, bias, y, workspace};
    const char* names[] = {"taps", "bias", "y", "workspace"};
    for (int i = 0; i < 4; ++i) {
      if (!tensors[i]) continue;
      require_tensor(tensors[i], names[i]);
      require_dtype(*tensors[i], names[i], DType::f32);
      require_device(*tensors[i], names[i], *x);
      require_contiguous(*tensors[i], names[i]);
    }
    const int64_t batch = x->shape[0], inputs = x->shape[1], height = x->shape[2],
                  width = x->shape[3], outputs = y->shape[1];
    require_size(*taps, "taps", 0, kWinogradPoints);
    require_size(*taps, "taps", 1, (outputs + 15) / 16);
    require_size(*taps, "taps", 2, inputs);
    require_size(*taps, "taps", 3, 16);
    if (bias) {
      require_rank(bias, "bias", 1);
      require_size(*bias, "bias", 0, outputs);
    }
    require_size(*y, "y", 0, batch);
    require_size(*y, "y", 2, height);
    require_size(*y, "y", 3, width);
    require_cpu(*x, "winograd");
    HEXAD_REQUIRE(inputs < (int64_t(1) << 32) && outputs < (int64_t(1) << 32),
                  "x, y: have %lld and %lld channels, wants fewer than 2^32", (long long)inputs,
                  (long long)outputs);
    if (numel(*y) == 0) return;
    const int64_t tiles = batch * ((height + 3) / 4) * ((width + 3) / 4);
    const int64_t need = winograd_workspace(inputs, outputs, tiles);
    HEXAD_REQUIRE(workspace->shape[0] >= need, "workspace: has %lld floats, wants at least %lld",
                  (long long)workspace->shape[0], (long long)need);
    cpu().winograd({data<float>(*x),
                    data<float>(*taps),
                    bias ? data<float>(*bias) : nullptr,
                    data<float>(*y),
                    data<float>(*workspace),
                    batch,
                    inputs,
                    outputs,
                    height,
                    width,
                    {stride(*x, 0), stride(*x, 1), stride(*x, 2), stride(*x, 3)}});
  });
}
