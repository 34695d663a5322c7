// A stack and the place in it where its thread stopped.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulator {

constexpr size_t kStack = 64 << 10;

#if defined(__x86_64__)
extern "C" void cuda_emulator_switch(void** leave, void* enter);

struct Context {
  void* sp = nullptr;
  void start(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + kStack);
    *--top = nullptr;  // where a return address would be: `entry` never returns
    *--top = reinterpret_cast<void*>(entry);
    sp = top - 6;
  }
  static void go(Context& from, Context& to) { cuda_emulator_switch(&from.sp, to.sp); }
};
#else
struct Context {
  ucontext_t context;
  void start(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack = {stack, 0, kStack};
    makecontext(&context, entry, 0);
  }
  static void go(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

}  // namespace cuda_emulator
