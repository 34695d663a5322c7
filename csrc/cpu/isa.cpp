// Which instruction set runs: the best one the machine has, unless HEXAD_ISA or the caller says.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "check.h"
#include "cpu/table.h"

namespace hexad {

#define LEVEL(isa)             \
  namespace isa {              \
  extern const CpuTable table; \
  }
#include "cpu/levels.def"
#undef LEVEL

namespace {

struct Level {
  const CpuTable* table;
  bool present;
};

#if defined(__x86_64__)
// Tiles of bfloat16 and of bytes; the kernel gives a process their state when it asks.
bool has_tiles() {
#if defined(__linux__)
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBfloat16 | kTile | kInt8;
  constexpr int kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = [] {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll &&
           syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}
#endif

bool machine_has(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!strcmp(isa, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  if (!strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(isa, "avx512bf16"))
    return machine_has("avx512") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
  if (!strcmp(isa, "amx")) return machine_has("avx512bf16") && has_tiles();
#endif
  return !strcmp(isa, "base");
}

// Worst first.
const CpuTable* const levels[] = {
#define LEVEL(isa) &isa::table,
#include "cpu/levels.def"
#undef LEVEL
};

const CpuTable* find(const char* name) {
  for (const CpuTable* t : levels)
    if (!strcmp(t->name, name) && machine_has(name)) return t;
  return nullptr;
}

const CpuTable* choose() {
  const char* forced = getenv("HEXAD_ISA");
  if (forced && *forced) {
    if (const CpuTable* t = find(forced)) return t;
    fail(HEXAD_UNSUPPORTED, "HEXAD_ISA: '%s' is not available, this machine and build have: %s",
         forced, hexad_isa_available());
  }
  const CpuTable* best = nullptr;
  for (const CpuTable* t : levels)
    if (machine_has(t->name)) best = t;
  if (!best) fail(HEXAD_UNSUPPORTED, "cpu: this build needs AVX2 and FMA, the machine has neither");
  return best;
}

std::atomic<const CpuTable*> current{nullptr};

}  // namespace

const CpuTable& cpu() {
  const CpuTable* t = current.load(std::memory_order_acquire);
  if (!t) {
    t = choose();
    current.store(t, std::memory_order_release);
  }
  return *t;
}

bool runs_ahead_of_streams() {
#if defined(__x86_64__)
  static const bool intel = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") != 0;
  }();
  return intel;
#else
  return false;
#endif
}

}  // namespace hexad

extern "C" const char* hexad_isa(void) {
  try {
    return hexad::cpu().name;
  } catch (const hexad::Failure&) {
    return "";
  }
}

extern "C" const char* hexad_isa_available(void) {
  static const std::string text = [] {
    std::string joined;
    for (const hexad::CpuTable* t : hexad::levels)
      if (hexad::machine_has(t->name)) joined += (joined.empty() ? "" : ",") + std::string(t->name);
    return joined;
  }();
  return text.c_str();
}

extern "C" hexad_status hexad_set_isa(const char* name) {
  return hexad::guarded([&] {
    const hexad::CpuTable* t = name ? hexad::find(name) : nullptr;
    HEXAD_REQUIRE(t, "name: '%s' is not available, this machine and build have: %s",
                  name ? name : "", hexad_isa_available());
    hexad::current.store(t);
  });
}
