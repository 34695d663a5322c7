#include "cuda_emulator.h"

#include <pthread.h>

#include <csignal>
#include <mutex>

#include "block.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {

int until_switch = 1 << 30;

namespace {

std::mutex one_launch;
uint64_t next_seed = 1;
std::string error;
pthread_t launching;

// A kernel's fault ends its block and becomes a report; any other goes to whoever was there before.
class Faults {
 public:
  Faults() {
    static char* const stack = new char[kBytes];
    stack_t ours{};
    ours.ss_sp = stack;
    ours.ss_size = kBytes;
    sigaltstack(&ours, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  ~Faults() {
    for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &before_[i], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static constexpr size_t kBytes = 64 << 10;
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
  static struct sigaction before_[3];

  static void on_fault(int signal, siginfo_t* info, void* context) {
    bool write = false;
#if defined(__x86_64__)
    write = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
#endif
    (void)context;
    if (Block::running && pthread_equal(pthread_self(), launching))
      Block::running->fault(signal, info->si_addr, write);
    for (int i = 0; i < 3; ++i)
      if (kSignals[i] == signal) sigaction(signal, &before_[i], nullptr);
  }

  stack_t stack_before_{};
};

constexpr int Faults::kSignals[3];
struct sigaction Faults::before_[3];

}  // namespace

const char* run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const unsigned threads = block.x * block.y * block.z;
  const uint64_t seed = next_seed++;
  if (!threads || threads > 1024) return "a block of 0 or more than 1024 threads";
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return "a grid outside the limits";
  if (shared_bytes > 227 << 10) return "more than 227 KiB of dynamic shared memory";
  static SharedMemory shared;
  if (const char* why = shared.start(shared_bytes)) return why;
  gridDim = grid;
  blockDim = block;
  launching = pthread_self();
  const Faults faults;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const dim3 at{unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                  unsigned(i / grid.x / grid.y)};
    if (i) shared.clear();
    error = Block(shared, threads, seed * blocks + i, thread).run(at);
    if (!error.empty()) {
      error += " (seed " + std::to_string(seed) + ")";
      return error.c_str();
    }
  }
  return nullptr;
}

void seed(uint64_t value) {
  next_seed = value;
}
Uninterrupted::Uninterrupted() : before_(Block::running->in_core) {
  Block::running->in_core = true;
}
Uninterrupted::~Uninterrupted() {
  Block::running->in_core = before_;
}
void stop(const std::string& why) {
  const Core core;
  Block::running->stop(why);
}
void* shared_array(const void* key, size_t bytes) {
  const Core core;
  void* array = Block::running->shared().array(key, bytes);
  if (!array) Block::running->stop("more shared memory than there is");
  return array;
}
void* dynamic_shared() {
  return Block::running->shared().dynamic();
}
void block_barrier(const char* file, int line) {
  const Core core;
  Block::running->barrier(file, line);
}
void named_barrier(int id, int count, bool wait, const char* file, int line) {
  const Core core;
  Block::running->named_barrier(id, count, wait, file, line);
}
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int operand, int width,
                         const char* file, int line) {
  const Core core;
  return Block::running->collective(kind, mask, value, operand, width, file, line);
}

}  // namespace cuda_emulator
