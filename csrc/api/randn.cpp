#include "op/randn.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_randn(const hexad_tensor* seeds, hexad_tensor* out, int64_t offset,
                                    hexad_stream stream) {
  return guarded([&] {
    require_rank(seeds, "seeds", 1);
    require_tensor(out, "out", 1);
    require_dtype(*seeds, "seeds", DType::i64);
    require_dtype(*out, "out", DType::f32);
    require_contiguous(*seeds, "seeds");
    require_contiguous(*out, "out");
    require_size(*out, "out", 0, seeds->shape[0]);
    require_device(*out, "out", *seeds);
    HEXAD_REQUIRE(offset >= 0, "offset: is %lld, wants at least 0", (long long)offset);
    const int64_t batch = seeds->shape[0];
    if (numel(*out) == 0) return;
    const RandnArgs args{data<int64_t>(*seeds), data<float>(*out), batch, numel(*out) / batch,
                         offset};
    if (on_cuda(*seeds)) return cuda::randn(args, stream);
    cpu().randn(args);
  });
}
