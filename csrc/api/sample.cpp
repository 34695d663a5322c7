#include "op/sample.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

namespace {

// Checks a per-row parameter as far as memory safety goes.
template <class T>
PerRow<T> per_row(const hexad_tensor* t, const char* name, DType dtype, T all,
                  const hexad_tensor& logits) {
  if (!t) return {nullptr, all};
  require_rank(t, name, 1);
  require_dtype(*t, name, dtype);
  require_size(*t, name, 0, logits.shape[0]);
  require_contiguous(*t, name);
  require_device(*t, name, logits);
  return {data<T>(*t), all};
}

// Values of one row in their range; `one` where 1 bounds them.
void require_range(double value, const char* name, int64_t row, bool one) {
  HEXAD_REQUIRE(value >= 0 && value <= (one ? 1.0 : 3.5e38), "%s: is %g in row %lld, wants %s",
                name, value, (long long)row, one ? "0 to 1" : "a finite number of at least 0");
}

}  // namespace

extern "C" hexad_status hexad_sample(const hexad_tensor* logits, const hexad_tensor* seeds,
                                     const hexad_tensor* positions, const hexad_tensor* top_ks,
                                     const hexad_tensor* temperatures, const hexad_tensor* top_ps,
                                     const hexad_tensor* min_ps, hexad_tensor* out,
                                     hexad_tensor* workspace, int64_t position, float temperature,
                                     int64_t top_k, float top_p, float min_p, hexad_stream stream) {
  return guarded([&] {
    require_rank(logits, "logits", 2);
    require_rank(out, "out", 1);
    const DType dtype = require_float(*logits, "logits", on_cuda(*logits));
    require_rows(*logits, "logits");
    const int64_t batch = logits->shape[0], vocabulary = logits->shape[1];
    HEXAD_REQUIRE(vocabulary >= 1 && vocabulary < INT32_MAX,
                  "logits: has %lld tokens, wants 1 to 2^31 - 2", (long long)vocabulary);
    SampleArgs args{};
    args.logits = data<void>(*logits);
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16;
    args.batch = batch;
    args.vocabulary = vocabulary;
    args.logits_stride = stride(*logits, 0);
    args.seeds = per_row<int64_t>(seeds, "seeds", DType::i64, 0, *logits).values;
    args.position = per_row<int64_t>(positions, "position", DType::i64, position, *logits);
    args.top_k = per_row<int64_t>(top_ks, "top_k", DType::i64, top_k, *logits);
    args.temperature =
        per_row<float>(temperatures, "temperature", DType::f32, temperature, *logits);
    args.top_p = per_row<float>(top_ps, "top_p", DType::f32, top_p, *logits);
    args.min_p = per_row<float>(min_ps, "min_p", DType::f32, min_p, *logits);
    args.out = const_cast<int64_t*>(per_row<int64_t>(out, "out", DType::i64, 0, *logits).values);
    if (workspace) {
      require_rank(workspace, "workspace", 2);
      require_dtype(*workspace, "workspace", DType::i32);
      require_size(*workspace, "workspace", 1, 4 * vocabulary);
      require_contiguous(*workspace, "workspace");
      require_device(*workspace, "workspace", *logits);
      args.workspace = data<int32_t>(*workspace);
      args.slots = workspace->shape[0];
    }
    if (on_cuda(*logits)) {
      HEXAD_REQUIRE(seeds || (!temperatures && temperature == 0),
                    "seeds: missing, CUDA kernels can do without for temperature 0 only");
      return cuda::sample(args, stream);
    }
    for (int64_t b = 0; b < batch; ++b) {
      require_range(args.temperature[b], "temperature", b, false);
      require_range(args.top_p[b], "top_p", b, true);
      require_range(args.min_p[b], "min_p", b, true);
      HEXAD_REQUIRE(args.top_k[b] >= 0, "top_k: is %lld in row %lld, wants at least 0 (0: all)",
                    (long long)args.top_k[b], (long long)b);
      HEXAD_REQUIRE(args.position[b] >= 0, "position: is %lld in row %lld, wants at least 0",
                    (long long)args.position[b], (long long)b);
      if (args.temperature[b] > 0) {
        HEXAD_REQUIRE(args.seeds, "seeds: missing, but row %lld has temperature %g (0 is greedy)",
                      (long long)b, args.temperature[b]);
        HEXAD_REQUIRE(vocabulary <= kSampleScratch || (args.workspace && args.slots > 0),
                      "workspace: missing, wants int32 (1 or more, %lld)",
                      (long long)(4 * vocabulary));
      }
    }
    cpu().sample(args);
    for (int64_t b = 0; b < batch; ++b) {
      HEXAD_REQUIRE(args.out[b] != kSampleNaN, "logits: row %lld has NaN", (long long)b);
      HEXAD_REQUIRE(args.out[b] != kSampleNothing, "logits: row %lld is -inf everywhere",
                    (long long)b);
    }
  });
}
