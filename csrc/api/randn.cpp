#include "op/randn.h"

#include "api/contiguous.h"
#include "cpu/table.h"

using namespace hexad;

extern "C" hexad_status hexad_randn(const hexad_tensor* seeds, hexad_tensor* out, int64_t offset,
                                    hexad_stream stream) {
  (void)stream;
  return guarded([&] {
    require_rank(seeds, "seeds", 1);
    HEXAD_REQUIRE(out && out->ndim >= 1, "out: missing, or has no dimensions");
    require_dtype(*seeds, "seeds", DType::i64);
    require_dtype(*out, "out", DType::f32);
    require_contiguous(*seeds, "seeds");
    require_contiguous(*out, "out");
    require_size(*out, "out", 0, seeds->shape[0]);
    require_device(*out, "out", *seeds);
    HEXAD_REQUIRE(offset >= 0, "offset: is %lld, wants at least 0", (long long)offset);
    if (on_cuda(*seeds)) fail(HEXAD_UNSUPPORTED, "randn has no CUDA kernel");
    const int64_t batch = seeds->shape[0];
    if (numel(*out) == 0) return;
    cpu().randn({data<int64_t>(*seeds), data<float>(*out), batch, numel(*out) / batch, offset});
  });
}
