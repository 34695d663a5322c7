// Kernels that neither pair bfloat16 nor use tiles or VNNI are the same code at every level of
// AVX-512. So the first of these that is built, HEXAD_PLAIN, compiles them for all: where
// HEXAD_SHARES is 1, that level is another one than this.
#pragma once

#include "op/ops.h"

namespace hexad {
namespace HEXAD_PLAIN {

#define OP(op, Args) void op(const Args&);
#include "cpu/ops.def"
#undef OP

}  // namespace HEXAD_PLAIN
}  // namespace hexad
