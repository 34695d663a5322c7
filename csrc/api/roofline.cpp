#include "op/roofline.h"

#include <cstring>

#include "check.h"
#include "cpu/parallel.h"
#include "cpu/table.h"

using namespace hexad;

extern "C" hexad_status hexad_roofline(int32_t kind, int64_t count, const hexad_tensor* source,
                                       hexad_tensor* target, hexad_tensor* sink,
                                       hexad_tensor* flops, hexad_stream) {
  return guarded([&] {
    HEXAD_REQUIRE(kind >= 0 && kind <= 3, "kind: is %d, wants 0 to 3", kind);
    HEXAD_REQUIRE(count > 0, "count: is %lld, wants a positive number", (long long)count);
    require_rank(sink, "sink", 1);
    require_dtype(*sink, "sink", DType::f32);
    require_contiguous(*sink, "sink");
    require_cpu(*sink, "roofline");
    require_rank(flops, "flops", 1);
    require_dtype(*flops, "flops", DType::f64);
    require_device(*flops, "flops", *sink);
    const int threads = parallel_threads();
    HEXAD_REQUIRE(sink->shape[0] >= threads && flops->shape[0] >= 1,
                  "sink: has %lld elements, wants one per thread (%d)", (long long)sink->shape[0],
                  threads);
    if (kind == 1 && strcmp(hexad_isa(), "avx512bf16") && strcmp(hexad_isa(), "amx"))
      fail(HEXAD_UNSUPPORTED, "kind: level %s has no bfloat16 dot product", hexad_isa());
    if (kind >= 2) {
      require_rank(source, "source", 1);
      require_dtype(*source, "source", DType::f32);
      require_contiguous(*source, "source");
      require_device(*source, "source", *sink);
      HEXAD_REQUIRE(count <= source->shape[0], "count: exceeds source");
    }
    if (kind == 3) {
      require_rank(target, "target", 1);
      require_dtype(*target, "target", DType::f32);
      require_contiguous(*target, "target");
      require_device(*target, "target", *sink);
      HEXAD_REQUIRE(count <= target->shape[0], "count: exceeds target");
    }
    const RooflineArgs args{kind,
                            source ? data<float>(*source) : nullptr,
                            target ? data<float>(*target) : nullptr,
                            count,
                            data<float>(*sink),
                            threads,
                            data<double>(*flops)};
    cpu().roofline(args);
  });
}
