#include "op/rope.h"

#include "api/heads.h"
#include "cpu/table.h"
#include "cuda/launch.h"

using namespace hexad;

extern "C" hexad_status hexad_rope(const hexad_tensor* x, const hexad_tensor* cos,
                                   const hexad_tensor* sin, const hexad_tensor* positions,
                                   hexad_tensor* y, int32_t interleaved, hexad_stream stream) {
  return guarded([&] {
    require_rank(x, "x", 4);
    require_rank(y, "y", 4);
    const hexad_tensor* tensors[] = {x, y};
    const char* names[] = {"x", "y"};
    const DType dtype = require_floats(tensors, names, 2, on_cuda(*x));
    require_shape(*y, "y", *x);
    require_distinct(*y, "y");
    HEXAD_REQUIRE(x->shape[3] > 0, "x: has head dimension 0, wants at least 2");
    RopeArgs args{};
    args.tables_bf16 = require_rotation(cos, sin, x->shape[3], *x);
    if (positions) {
      require_index(positions, "positions", 1, *x);
      require_size(*positions, "positions", 0, x->shape[0]);
    }
    require_positions(positions, "positions", x->shape[0], x->shape[2], cos->shape[0]);
    args.x = data<void>(*x), args.y = data<void>(*y);
    args.cos = data<void>(*cos), args.sin = data<void>(*sin);
    if (positions) {
      args.positions = data<int32_t>(*positions);
      args.positions_stride = stride(*positions, 0);
    }
    args.bf16 = dtype == DType::bf16, args.f16 = dtype == DType::f16,
    args.interleaved = interleaved != 0;
    args.batch = x->shape[0], args.heads = x->shape[1], args.rows = x->shape[2];
    args.head_dim = x->shape[3];
    strides_of(*x, 3, args.x_stride), strides_of(*y, 3, args.y_stride);
    args.cos_stride = stride(*cos, 0), args.sin_stride = stride(*sin, 0);
    if (on_cuda(*x)) return cuda::rope(args, stream);
    cpu().rope(args);
  });
}
