// Compiled once per instruction set: gathers that set's kernels.
#include "cpu/table.h"

#include "cpu/plain.h"

namespace hexad {
namespace HEXAD_ISA {

#define OP(op, Args) void op(const Args&);
#define PLAIN(op, Args)
#include "cpu/ops.def"
#undef OP

extern const CpuTable table;
const CpuTable table = {
    HEXAD_ISA_NAME,
#define OP(op, Args) HEXAD_ISA::op,
#define PLAIN(op, Args) HEXAD_PLAIN::op,
#include "cpu/ops.def"
#undef OP
};

}  // namespace HEXAD_ISA
}  // namespace hexad
