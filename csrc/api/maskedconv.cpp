#include "op/maskedconv.h"

#include "api/rows.h"
#include "cpu/parallel.h"
#include "cpu/table.h"

using namespace hexad;

extern "C" hexad_status hexad_maskedconv(const hexad_tensor* x, const hexad_tensor* weight,
                                         const hexad_tensor* bias, hexad_tensor* y,
                                         hexad_tensor* workspace, int64_t taps, int64_t row,
                                         int64_t col, hexad_stream) {
  return guarded([&] {
    require_rank(x, "x", 4);
    require_rank(weight, "weight", 4);
    require_rank(y, "y", row < 0 ? 4 : col < 0 ? 3 : 2);
    require_rank(workspace, "workspace", 1);
    const DType dtype = require_float(*x, "x");
    const hexad_tensor* tensors[] = {weight, bias, y};
    const char* names[] = {"weight", "bias", "y"};
    for (int i = 0; i < 3; ++i) {
      if (!tensors[i]) continue;
      require_tensor(tensors[i], names[i]);
      require_dtype(*tensors[i], names[i], dtype);
      require_device(*tensors[i], names[i], *x);
      require_contiguous(*tensors[i], names[i]);
    }
    const int64_t batch = x->shape[0], inputs = x->shape[1], height = x->shape[2],
                  width = x->shape[3];
    const int64_t outputs = weight->shape[0], kh = weight->shape[2], kw = weight->shape[3];
    require_size(*weight, "weight", 1, inputs);
    HEXAD_REQUIRE(kh % 2 == 1 && kw % 2 == 1, "weight: its kernel is %lld x %lld, wants odd sizes",
                  (long long)kh, (long long)kw);
    HEXAD_REQUIRE(kh * kw < (int64_t(1) << 30), "weight: its kernel has %lld taps, wants fewer",
                  (long long)(kh * kw));
    HEXAD_REQUIRE(taps >= 0 && taps <= kh * kw, "taps: is %lld, wants 0 to %lld", (long long)taps,
                  (long long)(kh * kw));
    HEXAD_REQUIRE(row < height, "row: is %lld, wants less than %lld", (long long)row,
                  (long long)height);
    HEXAD_REQUIRE(col < width && (row >= 0 || col < 0),
                  "col: is %lld with row %lld of a width %lld", (long long)col, (long long)row,
                  (long long)width);
    if (bias) {
      require_rank(bias, "bias", 1);
      require_size(*bias, "bias", 0, outputs);
    }
    require_size(*y, "y", 0, batch);
    require_size(*y, "y", 1, outputs);
    if (row < 0) require_size(*y, "y", 2, height);
    if (col < 0) require_size(*y, "y", y->ndim - 1, width);
    require_dtype(*workspace, "workspace", DType::f32);
    require_device(*workspace, "workspace", *x);
    require_contiguous(*workspace, "workspace");
    require_cpu(*x, "maskedconv");
    HEXAD_REQUIRE(inputs * kh * kw < (int64_t(1) << 40),
                  "weight: an output has %lld weights, wants fewer than 2^40",
                  (long long)(inputs * kh * kw));
    const int64_t need = maskedconv_workspace(inputs, outputs, taps, parallel_threads());
    HEXAD_REQUIRE(workspace->shape[0] >= need, "workspace: has %lld floats, wants at least %lld",
                  (long long)workspace->shape[0], (long long)need);
    if (numel(*y) == 0) return;
    cpu().maskedconv({data<void>(*x),
                      data<void>(*weight),
                      bias ? data<void>(*bias) : nullptr,
                      data<void>(*y),
                      data<float>(*workspace),
                      dtype == DType::bf16,
                      batch,
                      inputs,
                      outputs,
                      height,
                      width,
                      kh,
                      kw,
                      {stride(*x, 0), stride(*x, 1), stride(*x, 2), stride(*x, 3)},
                      taps,
                      row < 0 ? 0 : row,
                      row < 0 ? height : row + 1,
                      col < 0 ? 0 : col,
                      col < 0 ? width : col + 1});
  });
}
