#include "cuda_emulator.h"

#include <sys/mman.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

#if defined(__x86_64__)
// Saves the callee's registers on the stack that it leaves and takes them from the one that it
// enters.
extern "C" void cuda_emulator_switch(void** leave, void* enter);
asm(R"(
.text
.globl cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");
#else
#include <ucontext.h>
#endif

namespace cuda_emulator {
namespace {

constexpr size_t kStack = 64 << 10;
constexpr size_t kGuard = 64;  // bytes of pattern around each shared array
constexpr unsigned char kPoison = 0xff, kGuardByte = 0xfe;
constexpr unsigned kWarp = 32;

// A stack and the place in it where its thread stopped.
#if defined(__x86_64__)
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

enum class State { ready, at_barrier, in_collective, exited };

struct Thread {
  Context context;
  State state;
  Collective kind;
  unsigned mask;
  uint64_t value;
  int operand, width;
  const char* file;
  int line;
};

struct SharedArray {
  size_t begin, bytes;
};

std::mutex one_launch;
uint64_t next_seed = 1;
std::string error;
std::vector<char*> stacks;
alignas(128) unsigned char memory[256 << 10];  // the running block's shared memory

class Block {
 public:
  Block(unsigned threads, size_t dynamic_bytes, uint64_t seed, const std::function<void()>& body)
      : threads_(threads), random_(seed * 0x9e3779b97f4a7c15u + 1), body_(body), alive_(threads) {
    dynamic_ = reserve(dynamic_bytes);
  }

  bool run(dim3 at) {
    running = this;
    blockIdx = at;
    for (unsigned i = 0; i < threads_.size(); ++i) {
      threads_[i].state = State::ready;
      threads_[i].context.start(stacks[i], enter);
      ready_.push_back(i);
    }
    while (!ready_.empty() && failure_.empty()) {
      const size_t pick = draw() % ready_.size();
      current_ = ready_[pick];
      ready_[pick] = ready_.back();
      ready_.pop_back();
      threadIdx = {current_ % blockDim.x, current_ / blockDim.x % blockDim.y,
                   current_ / blockDim.x / blockDim.y};
      Context::go(scheduler_, threads_[current_].context);
    }
    if (failure_.empty() && alive_) failure_ = deadlock();
    if (failure_.empty()) check_guards();
    if (failure_.empty()) return true;
    error = "block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
            std::to_string(at.z) + "): " + failure_;
    return false;
  }

  void barrier(const char* file, int line) { wait(State::at_barrier, file, line); }

  uint64_t collective(Collective kind, unsigned mask, uint64_t value, int operand, int width,
                      const char* file, int line) {
    Thread& me = threads_[current_];
    me.kind = kind;
    me.mask = mask;
    me.value = value;
    me.operand = operand;
    me.width = width;
    if (!(mask >> current_ % kWarp & 1)) {
      me.file = file;
      me.line = line;
      stop("thread " + std::to_string(current_) + " is not in its own lane mask, " + place(me));
    }
    wait(State::in_collective, file, line);
    return me.value;
  }

  void* shared(const void* key, size_t bytes) {
    auto found = arrays_.find(key);
    if (found == arrays_.end()) found = arrays_.emplace(key, reserve(bytes)).first;
    return memory + found->second.begin;
  }
  // Stops the block from inside a thread; the fibers are dropped as they stand.
  void stop(const std::string& why) {
    failure_ = why;
    Context::go(threads_[current_].context, scheduler_);
  }
  void* dynamic() { return memory + dynamic_.begin; }

  static Block* running;

 private:
  static void enter() {
    Block& b = *running;
    b.body_();
    Thread& me = b.threads_[b.current_];
    me.state = State::exited;
    --b.alive_;
    b.release_barrier();
    b.check_waiters_of(b.current_);
    Context::go(me.context, b.scheduler_);
  }

  void wait(State state, const char* file, int line) {
    Thread& me = threads_[current_];
    me.state = state;
    me.file = file;
    me.line = line;
    if (state == State::at_barrier) {
      ++waiting_;
      release_barrier();
    } else {
      try_collective();
    }
    Context::go(me.context, scheduler_);
  }

  // Threads that have exited count as arrived.
  void release_barrier() {
    if (!waiting_ || waiting_ != alive_) return;
    waiting_ = 0;
    const Thread* first = nullptr;
    for (unsigned i = 0; i < threads_.size(); ++i) {
      const Thread& t = threads_[i];
      if (t.state != State::at_barrier) continue;
      if (!first) first = &t;
      if (t.line != first->line || t.file != first->file)
        failure_ = "threads meet at different barriers: thread " +
                   std::to_string(first - &threads_[0]) + " " + place(*first) + ", thread " +
                   std::to_string(i) + " " + place(t);
      wake(i);
    }
  }

  void wake(unsigned i) {
    threads_[i].state = State::ready;
    ready_.push_back(i);
  }

  // The last lane of the mask to arrive works out everyone's value.
  void try_collective() {
    const unsigned first = current_ / kWarp * kWarp;
    const Thread& me = threads_[current_];
    uint64_t values[kWarp] = {};
    uint64_t votes = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (!(me.mask >> lane & 1)) continue;
      if (first + lane >= threads_.size() || threads_[first + lane].state == State::exited) {
        failure_ = "thread " + std::to_string(current_) + " waits for lane " +
                   std::to_string(lane) + ", which has exited, " + place(me);
        return;
      }
      const Thread& other = threads_[first + lane];
      if (other.state != State::in_collective || other.kind != me.kind || other.mask != me.mask)
        return;
      values[lane] = other.value;
      votes |= (other.value & 1) << lane;
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (!(me.mask >> lane & 1)) continue;
      Thread& t = threads_[first + lane];
      if (t.kind == Collective::ballot) {
        t.value = votes;
      } else if (t.kind != Collective::sync) {
        const unsigned from = source(t, lane);
        if (!(me.mask >> from & 1)) {
          failure_ = "lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
                     ", which is outside the mask, " + place(t);
          return;
        }
        t.value = values[from];
      }
      wake(first + lane);
    }
  }

  static unsigned source(const Thread& t, unsigned lane) {
    const unsigned width = unsigned(t.width), base = lane / width * width, at = lane - base;
    const unsigned n = unsigned(t.operand);
    switch (t.kind) {
      case Collective::shuffle:
        return base + n % width;
      case Collective::shuffle_up:
        return at >= n ? lane - n : lane;
      case Collective::shuffle_down:
        return at + n < width ? lane + n : lane;
      default:
        return (at ^ n) < width ? base + (at ^ n) : lane;
    }
  }

  void check_waiters_of(unsigned gone) {
    const unsigned first = gone / kWarp * kWarp;
    for (unsigned i = first; i < first + kWarp && i < threads_.size(); ++i)
      if (threads_[i].state == State::in_collective && threads_[i].mask >> gone % kWarp & 1)
        failure_ = "thread " + std::to_string(i) + " waits for lane " +
                   std::to_string(gone % kWarp) + ", which has exited, " + place(threads_[i]);
  }

  static std::string place(const Thread& t) {
    const char* slash = strrchr(t.file, '/');
    return std::string("at ") + (slash ? slash + 1 : t.file) + ":" + std::to_string(t.line);
  }

  std::string deadlock() const {
    std::map<std::string, std::vector<unsigned>> where;
    for (unsigned i = 0; i < threads_.size(); ++i) {
      const Thread& t = threads_[i];
      if (t.state == State::exited) continue;
      where[(t.state == State::at_barrier ? "in __syncthreads " : "in a warp collective ") +
            place(t).substr(3)]
          .push_back(i);
    }
    std::string text = "deadlock:";
    for (const auto& [at, who] : where)
      text += " " + std::to_string(who.size()) + " threads (first " + std::to_string(who[0]) +
              ") wait " + at + ";";
    return text + " " + std::to_string(threads_.size() - alive_) + " have exited";
  }

  SharedArray reserve(size_t bytes) {
    const SharedArray array{used_ + kGuard, bytes};
    used_ = array.begin + (bytes + 2 * kGuard - 1) / kGuard * kGuard;
    if (used_ > sizeof memory) stop("more than 256 KiB of shared memory");
    memset(memory + array.begin - kGuard, kGuardByte, kGuard);
    memset(memory + array.begin, kPoison, bytes);
    memset(memory + array.begin + bytes, kGuardByte, kGuard);
    guarded_.push_back(array);
    return array;
  }

  void check_guards() {
    for (const SharedArray& a : guarded_) {
      for (size_t i = 0; i < kGuard; ++i) {
        if (memory[a.begin - 1 - i] != kGuardByte)
          failure_ =
              "a write before the start of a shared array of " + std::to_string(a.bytes) + " bytes";
        if (memory[a.begin + a.bytes + i] != kGuardByte)
          failure_ =
              "a write past the end of a shared array of " + std::to_string(a.bytes) + " bytes";
      }
    }
  }

  uint64_t draw() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  std::vector<Thread> threads_;
  std::vector<unsigned> ready_;
  uint64_t random_;
  const std::function<void()>& body_;
  size_t alive_, waiting_ = 0;
  unsigned current_ = 0;
  Context scheduler_;
  std::string failure_;
  size_t used_ = 0;
  SharedArray dynamic_;
  std::map<const void*, SharedArray> arrays_;
  std::vector<SharedArray> guarded_;
};

Block* Block::running = nullptr;

}  // namespace

const char* run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const unsigned threads = block.x * block.y * block.z;
  const uint64_t seed = next_seed++;
  if (!threads || threads > 1024) return "a block of 0 or more than 1024 threads";
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return "a grid outside the limits";
  if (shared_bytes > 227 << 10) return "more than 227 KiB of dynamic shared memory";
  while (stacks.size() < threads) {
    void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) return "no memory for stacks";
    stacks.push_back(static_cast<char*>(stack));
  }
  gridDim = grid;
  blockDim = block;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const dim3 at{unsigned(i % grid.x), unsigned(i / grid.x % grid.y),
                  unsigned(i / grid.x / grid.y)};
    if (!Block(threads, shared_bytes, seed * blocks + i, thread).run(at)) {
      error += " (seed " + std::to_string(seed) + ")";
      return error.c_str();
    }
  }
  return nullptr;
}

void seed(uint64_t value) {
  next_seed = value;
}
void stop(const std::string& why) {
  Block::running->stop(why);
}
void* shared_array(const void* key, size_t bytes) {
  return Block::running->shared(key, bytes);
}
void* dynamic_shared() {
  return Block::running->dynamic();
}
void block_barrier(const char* file, int line) {
  Block::running->barrier(file, line);
}
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int operand, int width,
                         const char* file, int line) {
  return Block::running->collective(kind, mask, value, operand, width, file, line);
}

}  // namespace cuda_emulator
