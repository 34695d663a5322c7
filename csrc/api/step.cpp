#include "op/step.h"

#include "check.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_step(const hexad_tensor* table, const hexad_tensor* x,
                                   const hexad_tensor* model_output, const hexad_tensor* uncond,
                                   const hexad_tensor* h1, const hexad_tensor* h2,
                                   const hexad_tensor* h3, const hexad_tensor* last,
                                   const hexad_tensor* noise, hexad_tensor* out0,
                                   hexad_tensor* out1, hexad_tensor* out2,
                                   const hexad_tensor* seeds, const hexad_tensor* place,
                                   int64_t index, hexad_stream stream) {
  return guarded([&] {
    require_rank(table, "table", 3);
    require_dtype(*table, "table", DType::f32);
    require_size(*table, "table", 1, 4);
    require_size(*table, "table", 2, 8);
    require_contiguous(*table, "table");
    HEXAD_REQUIRE(index >= 0 && index < table->shape[0], "index: is %lld, wants 0 to %lld",
                  (long long)index, (long long)table->shape[0] - 1);
    require_tensor(x, "x");
    require_tensor(model_output, "model_output");
    require_tensor(out0, "out0");
    HEXAD_REQUIRE(out1 || !out2, "out1: missing, but out2 is there");
    const DType dtype = require_float(*model_output, "model_output");
    const hexad_tensor* tensors[] = {x,    model_output, uncond, h1,   h2,  h3,
                                     last, noise,        out0,   out1, out2};
    const char* names[] = {"x",          "model_output", "uncond", "history[0]",
                           "history[1]", "history[2]",   "last",   "noise",
                           "out0",       "out1",         "out2"};
    for (int i = 0; i < 11; ++i) {
      if (!tensors[i]) continue;
      require_tensor(tensors[i], names[i]);
      require_shape(*tensors[i], names[i], *x);
      require_dtype(*tensors[i], names[i], i == 1 || i == 2 ? dtype : DType::f32);
      require_contiguous(*tensors[i], names[i]);
      require_device(*tensors[i], names[i], *table);
    }
    auto optional = [](const hexad_tensor* t) { return t ? data<float>(*t) : nullptr; };
    StepArgs args{data<float>(*table) + index * 32,
                  data<float>(*x),
                  data<void>(*model_output),
                  uncond ? data<void>(*uncond) : nullptr,
                  {optional(h1), optional(h2), optional(h3)},
                  optional(last),
                  optional(noise),
                  {optional(out0), optional(out1), optional(out2)},
                  out2   ? 3
                  : out1 ? 2
                         : 1,
                  dtype == DType::bf16,
                  numel(*x)};
    if (on_cuda(*table)) {
      if (seeds) {
        HEXAD_REQUIRE(!noise, "seeds: there is a noise tensor too");
        require_tensor(x, "x", 1);
        require_rank(seeds, "seeds", 1);
        require_size(*seeds, "seeds", 0, x->shape[0]);
        require_dtype(*seeds, "seeds", DType::i64);
        require_contiguous(*seeds, "seeds");
        require_device(*seeds, "seeds", *table);
        args.seeds = data<int64_t>(*seeds);
        args.row_size = x->shape[0] ? args.size / x->shape[0] : 1;
      }
      if (place) {
        require_tensor(place, "index");
        HEXAD_REQUIRE(numel(*place) == 1, "index: has %lld elements, wants 1",
                      (long long)numel(*place));
        require_device(*place, "index", *table);
        args.place64 = dtype_of(*place) == DType::i64;
        if (!args.place64) require_dtype(*place, "index", DType::i32);
        args.place = data<void>(*place);
        args.table = data<float>(*table);
        args.steps = table->shape[0];
      }
      args.index = index;
      return cuda::step(args, stream);
    }
    HEXAD_REQUIRE(!seeds && !place, "%s: for CUDA kernels, wants %s here",
                  seeds ? "seeds" : "index", seeds ? "noise" : "a number");
    // Columns of C that the optional inputs 3 to 7 of `tensors` stand in.
    for (int i = 3; i < 8; ++i)
      for (int k = 0; k < args.outputs && !tensors[i]; ++k)
        HEXAD_REQUIRE(args.row[8 * (1 + k) + i] == 0,
                      "%s: missing, but output %d of this step takes it times %g", names[i], k,
                      args.row[8 * (1 + k) + i]);
    cpu().step(args);
  });
}
