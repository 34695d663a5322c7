// One function table per instruction set; ops.def has a line per op.
#pragma once

#include "op/ops.h"

namespace hexad {

struct CpuTable {
  const char* name;
#define OP(op, Args) void (*op)(const Args&);
#include "cpu/ops.def"
#undef OP
};

// The table of the instruction set in use (isa.cpp).
const CpuTable& cpu();

// Whether the processor runs ahead of several streams of reads at once, so that asking in streams
// brings in more than asking in the order of reading.
bool runs_ahead_of_streams();

}  // namespace hexad
