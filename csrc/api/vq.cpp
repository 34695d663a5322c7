#include "op/vq.h"

#include "api/rows.h"
#include "cpu/parallel.h"
#include "cpu/table.h"

using namespace hexad;

extern "C" hexad_status hexad_vq(const hexad_tensor* x, const hexad_tensor* codebook,
                                 hexad_tensor* quantized, hexad_tensor* index,
                                 hexad_tensor* workspace, hexad_stream) {
  return guarded([&] {
    const Rows in = rows_of(x, "x"), entries = rows_of(codebook, "codebook");
    const Rows out = rows_of(quantized, "quantized");
    const DType dtype = require_float(*x, "x");
    require_dtype(*codebook, "codebook", dtype);
    require_dtype(*quantized, "quantized", dtype);
    require_tensor(index, "index");
    require_dtype(*index, "index", DType::i64);
    require_device(*codebook, "codebook", *x);
    require_device(*quantized, "quantized", *x);
    require_device(*index, "index", *x);
    require_rank(codebook, "codebook", 2);
    require_size(*codebook, "codebook", 1, in.size);
    HEXAD_REQUIRE(entries.count >= 1, "codebook: is empty, wants at least one entry");
    HEXAD_REQUIRE(out.count == in.count && out.size == in.size,
                  "quantized: is %lld x %lld, wants x's %lld x %lld", (long long)out.count,
                  (long long)out.size, (long long)in.count, (long long)in.size);
    require_contiguous(*index, "index");
    require_distinct(*quantized, "quantized");
    HEXAD_REQUIRE(numel(*index) == in.count, "index: has %lld elements, wants x's %lld rows",
                  (long long)numel(*index), (long long)in.count);
    require_rank(workspace, "workspace", 1);
    require_dtype(*workspace, "workspace", DType::f32);
    require_device(*workspace, "workspace", *x);
    require_contiguous(*workspace, "workspace");
    require_cpu(*x, "vq");
    HEXAD_REQUIRE(in.size < (int64_t(1) << 40), "x: has %lld features, wants fewer than 2^40",
                  (long long)in.size);
    const int64_t need = in.count > kVqFew ? parallel_threads() * vq_workspace(in.size) : 0;
    HEXAD_REQUIRE(workspace->shape[0] >= need, "workspace: has %lld floats, wants at least %lld",
                  (long long)workspace->shape[0], (long long)need);
    // Without features every distance is 0: the first entry is as good as all.
    const int64_t count = in.size ? entries.count : 1;
    int64_t* found = data<int64_t>(*index);
    cpu().vq({data<void>(*x), data<void>(*codebook), data<void>(*quantized),
              data<float>(*workspace), found, dtype == DType::bf16, in.count, in.size, count,
              in.stride, entries.stride, out.stride});
    for (int64_t i = 0; i < in.count; ++i)
      HEXAD_REQUIRE(found[i] >= 0,
                    "x, codebook: the distance from row %lld to entry %lld is NaN, wants numbers",
                    (long long)i, (long long)(-1 - found[i]));
  });
}
