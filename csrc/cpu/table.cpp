// Compiled once per instruction set: gathers that set's kernels.
#include "cpu/table.h"

namespace hexad {
namespace HEXAD_ISA {

#define OP(op, Args) void op(const Args&);
#include "cpu/ops.def"
#undef OP

extern const CpuTable table;
const CpuTable table = {
    HEXAD_ISA_NAME,
#define OP(op, Args) op,
#include "cpu/ops.def"
#undef OP
};

}  // namespace HEXAD_ISA
}  // namespace hexad
