// The CUDA side of each op, as the doors see it: ops.def has a line per op that has CUDA kernels.
#pragma once

#include "check.h"
#include "op/ops.h"

namespace hexad {
namespace cuda {

#define OP(op, Args) void op(const Args&, hexad_stream);
#include "cuda/ops.def"
#undef OP

}  // namespace cuda
}  // namespace hexad
