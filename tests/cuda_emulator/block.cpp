#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <csignal>
#include <map>

#if defined(__x86_64__)
// Saves the callee's registers on the stack that it leaves and takes them from the one that it
// enters.
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
#endif

namespace cuda_emulator {

extern int until_switch;

namespace {

constexpr size_t kStackGuard = kStack;

// Stacks outlive blocks; below each lies an unmapped page.
char* stack(unsigned i) {
  static std::vector<char*> stacks;
  while (stacks.size() <= i) {
    void* p = mmap(nullptr, kStackGuard + kStack, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    mprotect(p, kStackGuard, PROT_NONE);
    stacks.push_back(static_cast<char*>(p) + kStackGuard);
  }
  return stacks[i];
}

}  // namespace

Block* Block::running = nullptr;

Block::Block(SharedMemory& shared, unsigned threads, uint64_t seed,
             const std::function<void()>& body)
    : shared_(shared),
      threads_(threads),
      random_(seed * 0x9e3779b97f4a7c15u + 1),
      body_(body),
      alive_(threads) {
  for (int i = 0; i < 16; ++i) named_[size_t(i)].id = i;
}

Block::~Block() {
  delete extension_;
  running = nullptr;
}

std::string Block::run(dim3 at) {
  running = this;
  blockIdx = at;
  for (unsigned i = 0; i < threads_.size(); ++i) {
    threads_[i].context.start(stack(i), enter);
    ready_.push_back(i);
  }
  machine_.start(stack(threads()), enter_machine);
  const bool hasty = draw() % 2;  // else copies land when nothing else can happen
  while (failure_.empty() && (!ready_.empty() || !flying_.empty())) {
    if (ready_.empty() || (hasty && !flying_.empty() && draw() % 16 == 0)) {
      land_one();
      continue;
    }
    const size_t pick = draw() % ready_.size();
    current_ = ready_[pick];
    ready_[pick] = ready_.back();
    ready_.pop_back();
    threadIdx = {current_ % blockDim.x, current_ / blockDim.x % blockDim.y,
                 current_ / blockDim.x / blockDim.y};
    until_switch = int(draw() % 64 + 1);
    Context::go(scheduler_, threads_[current_].context);
    in_core = true;
  }
  if (failure_.empty() && alive_) failure_ = deadlock();
  if (failure_.empty()) failure_ = shared_.overrun();
  if (failure_.empty()) return "";
  return "block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
         std::to_string(at.z) + "): " + failure_;
}

void Block::enter() {
  Block& b = *running;
  b.in_core = false;
  b.body_();
  b.in_core = true;
  b.threads_[b.current_].state = Thread::State::exited;
  --b.alive_;
  b.release_barrier();
  b.check_waiters_of(b.current_);
  if (!b.alive_ && b.extension_ && b.failure_.empty()) b.failure_ = b.extension_->leftover();
  b.leave();
}

void Block::leave() {
  Context::go(threads_[current_].context, scheduler_);
}

void Block::enter_machine() {
  for (Block& b = *running;;) {
    b.landing_();
    b.landing_ = nullptr;
    Context::go(b.machine_, b.scheduler_);
  }
}

void Block::land_one() {
  const size_t pick = draw() % flying_.size();
  landing_ = std::move(flying_[pick]);
  flying_[pick] = std::move(flying_.back());
  flying_.pop_back();
  on_machine_ = true;
  Context::go(scheduler_, machine_);
  on_machine_ = false;
}

void Block::yield() {
  ready_.push_back(current_);
  leave();
}

void Block::stop(const std::string& why) {
  if (failure_.empty()) failure_ = why;
  Context::go(on_machine_ ? machine_ : threads_[current_].context, scheduler_);
}

void Block::sleep(Waiting& on, const char* file, int line) {
  Thread& me = threads_[current_];
  me.state = Thread::State::asleep;
  me.on = &on;
  me.file = file;
  me.line = line;
  on.threads.push_back(current_);
  leave();
}

void Block::wake(unsigned i) {
  threads_[i].state = Thread::State::ready;
  ready_.push_back(i);
}

void Block::wake_all(Waiting& on) {
  for (const unsigned i : on.threads) wake(i);
  on.threads.clear();
}

void Block::barrier(const char* file, int line) {
  Thread& me = threads_[current_];
  me.file = file;
  me.line = line;
  me.state = Thread::State::asleep;
  me.on = &barrier_;
  barrier_.threads.push_back(current_);
  release_barrier();
  leave();
}

// Threads that have exited count as arrived.
void Block::release_barrier() {
  if (barrier_.threads.empty() || barrier_.threads.size() != alive_) return;
  std::sort(barrier_.threads.begin(), barrier_.threads.end());
  const Thread& first = threads_[barrier_.threads[0]];
  for (const unsigned i : barrier_.threads) {
    const Thread& t = threads_[i];
    if (t.line == first.line && t.file == first.file) continue;
    failure_ = "threads meet at different barriers: thread " + std::to_string(barrier_.threads[0]) +
               " " + place(first.file, first.line) + ", thread " + std::to_string(i) + " " +
               place(t.file, t.line);
  }
  wake_all(barrier_);
}

std::string Block::NamedBarrier::describe() const {
  return "at named barrier " + std::to_string(id) + " (" + std::to_string(arrived) + " of " +
         std::to_string(count) + " threads have come)";
}

void Block::named_barrier(int id, int count, bool wait, const char* file, int line) {
  if (id < 1 || id > 15)
    stop("named barrier " + std::to_string(id) + ", wants 1 to 15, " + who(file, line));
  if (count < 1 || count % int(kWarp))
    stop("named barrier " + std::to_string(id) + " for " + std::to_string(count) +
         " threads, wants whole warps, " + who(file, line));
  NamedBarrier& b = named_[size_t(id)];
  if (b.arrived && b.count != count)
    stop("named barrier " + std::to_string(id) + ": for " + std::to_string(count) +
         " threads here, for " + std::to_string(b.count) + " elsewhere, " + who(file, line));
  b.count = count;
  if (++b.arrived == count) {
    b.arrived = 0;
    wake_all(b);
    if (wait) yield();
  } else if (wait) {
    sleep(b, file, line);
  }
}

uint64_t Block::collective(Collective kind, unsigned mask, uint64_t value, int operand, int width,
                           const char* file, int line) {
  Thread& me = threads_[current_];
  me.kind = kind;
  me.mask = mask;
  me.value = value;
  me.operand = operand;
  me.width = width;
  me.file = file;
  me.line = line;
  if (!(mask >> current_ % kWarp & 1))
    stop("thread " + std::to_string(current_) + " is not in its own lane mask, " +
         place(file, line));
  me.state = Thread::State::asleep;
  me.on = &collective_;
  try_collective();
  leave();
  return me.value;
}

// The last lane of the mask to arrive works out everyone's value.
void Block::try_collective() {
  const unsigned first = current_ / kWarp * kWarp;
  const Thread& me = threads_[current_];
  uint64_t values[kWarp] = {};
  uint64_t votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(me.mask >> lane & 1)) continue;
    if (first + lane >= threads_.size() || threads_[first + lane].state == Thread::State::exited) {
      failure_ = "thread " + std::to_string(current_) + " waits for lane " + std::to_string(lane) +
                 ", which has exited, " + place(me.file, me.line);
      return;
    }
    const Thread& other = threads_[first + lane];
    if (other.state != Thread::State::asleep || other.on != &collective_ || other.kind != me.kind ||
        other.mask != me.mask)
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
                   ", which is outside the mask, " + place(t.file, t.line);
        return;
      }
      t.value = values[from];
    }
    wake(first + lane);
  }
}

unsigned Block::source(const Thread& t, unsigned lane) {
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

void Block::check_waiters_of(unsigned gone) {
  const unsigned first = gone / kWarp * kWarp;
  for (unsigned i = first; i < first + kWarp && i < threads_.size(); ++i) {
    const Thread& t = threads_[i];
    if (t.state == Thread::State::asleep && t.on == &collective_ && t.mask >> gone % kWarp & 1)
      failure_ = "thread " + std::to_string(i) + " waits for lane " + std::to_string(gone % kWarp) +
                 ", which has exited, " + place(t.file, t.line);
  }
}

std::string Block::place(const char* file, int line) {
  const char* slash = strrchr(file, '/');
  return std::string("at ") + (slash ? slash + 1 : file) + ":" + std::to_string(line);
}

std::string Block::who(const char* file, int line) const {
  return "thread " + std::to_string(current_) + " " + place(file, line);
}

std::string Block::deadlock() const {
  std::map<std::string, std::vector<unsigned>> where;
  for (unsigned i = 0; i < threads_.size(); ++i) {
    const Thread& t = threads_[i];
    if (t.state == Thread::State::exited) continue;
    where[t.on->describe() + " " + place(t.file, t.line).substr(3)].push_back(i);
  }
  std::string text = "deadlock:";
  for (const auto& [at, who] : where)
    text += " " + std::to_string(who.size()) + " threads (first " + std::to_string(who[0]) +
            ") wait " + at + ";";
  return text + " " + std::to_string(threads_.size() - alive_) + " have exited";
}

bool Block::fault(int signal, void* address, bool write) {
  const char* at = static_cast<const char*>(address);
  const std::string thread = on_machine_ ? "a bulk copy" : "thread " + std::to_string(current_);
  const char* lowest = stack(on_machine_ ? threads() : current_);
  if (signal == SIGFPE)
    failure_ = thread + " divides an integer by zero";
  else if (at < lowest && at >= lowest - kStackGuard)
    failure_ = thread + " needs more than " + std::to_string(kStack >> 10) + " KiB of local memory";
  else
    failure_ = thread + (write ? " writes " : " reads ") +
               (SharedMemory::holds(address) ? shared_.locate(address) : locate_global(address));
  Context::go(on_machine_ ? machine_ : threads_[current_].context, scheduler_);
  return true;
}

uint64_t Block::draw() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return random_;
}

}  // namespace cuda_emulator
