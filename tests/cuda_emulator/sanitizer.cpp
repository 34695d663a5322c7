// What the compiler calls in kernels built with -fsanitize=thread (at each access to memory that
// others may see) and -fsanitize=alignment. The sanitizers' own libraries are not linked.
#include "block.h"

namespace cuda_emulator {

extern int until_switch;

namespace {

inline void access() {
  if (--until_switch > 0) return;
  Block* b = Block::running;
  until_switch = 1 << 30;
  if (b && !b->in_core) {
    b->in_core = true;
    b->yield();
    b->in_core = false;
  }
}

// As the compiler lays them out.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  SourceLocation at;
  const TypeDescriptor* type;
  unsigned char log_alignment, kind;
};

}  // namespace
}  // namespace cuda_emulator

using namespace cuda_emulator;

#define HEXAD_ACCESS(name)      \
  extern "C" void name(void*) { \
    access();                   \
  }
#define HEXAD_ACCESSES(kind)     \
  HEXAD_ACCESS(__tsan_##kind##1) \
  HEXAD_ACCESS(__tsan_##kind##2) \
  HEXAD_ACCESS(__tsan_##kind##4) \
  HEXAD_ACCESS(__tsan_##kind##8) \
  HEXAD_ACCESS(__tsan_##kind##16)
HEXAD_ACCESSES(read)
HEXAD_ACCESSES(write)
HEXAD_ACCESSES(unaligned_read)
HEXAD_ACCESSES(unaligned_write)
HEXAD_ACCESSES(volatile_read)
HEXAD_ACCESSES(volatile_write)

extern "C" void __tsan_read_range(void*, size_t) {
  access();
}
extern "C" void __tsan_write_range(void*, size_t) {
  access();
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
extern "C" void __tsan_vptr_update(void**, void*) {}

extern "C" void __ubsan_handle_type_mismatch_v1(const Mismatch* what, uintptr_t address) {
  Block* b = Block::running;
  if (!b) return;
  b->in_core = true;
  b->stop("a misaligned access: " + std::string(what->type->name) + " at " +
          std::to_string(address % (size_t(1) << what->log_alignment)) +
          " bytes past a multiple of " + std::to_string(size_t(1) << what->log_alignment) + ", " +
          b->who(what->at.file, int(what->at.line)));
}
