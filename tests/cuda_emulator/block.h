// The block of threads that runs: who is ready, who sleeps on what, and what lands later. For the
// emulator's own files; kernels see cuda_emulator.h.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"
#include "memory.h"

namespace cuda_emulator {

constexpr unsigned kWarp = 32, kGroup = 128;  // threads of a warp, and of a warpgroup

// Something that threads sleep on, and how a deadlock report calls it.
struct Waiting {
  std::vector<unsigned> threads;
  virtual ~Waiting() = default;
  virtual std::string describe() const = 0;
};

struct Thread {
  enum class State { ready, asleep, exited };
  Context context;
  State state = State::ready;
  const Waiting* on = nullptr;
  const char* file = nullptr;
  int line = 0;
  // Of the warp collective that it is in.
  Collective kind{};
  unsigned mask = 0;
  uint64_t value = 0;
  int operand = 0, width = 0;
};

// State that wrappers keep for the running block and drop with it (hopper.cpp).
struct Extension {
  virtual ~Extension() = default;
  // Called when all threads have exited; what was left undone, or "".
  virtual std::string leftover() const = 0;
};

class Block {
 public:
  Block(SharedMemory& shared, unsigned threads, uint64_t seed, const std::function<void()>& body);
  ~Block();

  // Empty, or what went wrong.
  std::string run(dim3 at);

  unsigned current() const { return current_; }
  Thread& thread(unsigned i) { return threads_[i]; }
  unsigned threads() const { return unsigned(threads_.size()); }
  SharedMemory& shared() { return shared_; }
  uint64_t draw();

  void barrier(const char* file, int line);
  void named_barrier(int id, int count, bool wait, const char* file, int line);
  uint64_t collective(Collective kind, unsigned mask, uint64_t value, int operand, int width,
                      const char* file, int line);

  // The calling thread sleeps until somebody wakes the list.
  void sleep(Waiting& on, const char* file, int line);
  void wake_all(Waiting& on);
  // `land` happens at some later time: by chance, or at the latest when no thread can run.
  void later(std::function<void()> land) { flying_.push_back(std::move(land)); }
  void land_all();
  // Lets another thread run.
  void yield();
  // Ends the block: from a thread it does not return.
  void stop(const std::string& why);
  // The calling thread's number and the place of its call.
  std::string who(const char* file, int line) const;
  static std::string place(const char* file, int line);
  // From the signal handler: whether the fault was a kernel's; it does not return then.
  bool fault(int signal, void* address, bool write);

  template <class T>
  T& extension() {
    if (!extension_) extension_ = new T;
    return static_cast<T&>(*extension_);
  }

  static Block* running;
  bool in_core = true;  // no switch of threads now

 private:
  struct NamedBarrier : Waiting {
    int id = 0, count = 0, arrived = 0;
    std::string describe() const override;
  };
  struct PlainWait : Waiting {
    const char* what;
    explicit PlainWait(const char* what) : what(what) {}
    std::string describe() const override { return what; }
  };

  static void enter();
  static void enter_machine();
  void release_barrier();
  void try_collective();
  void check_waiters_of(unsigned gone);
  static unsigned source(const Thread& t, unsigned lane);
  void wake(unsigned i);
  void land_one();
  std::string deadlock() const;
  void leave();

  SharedMemory& shared_;
  std::vector<Thread> threads_;
  std::vector<unsigned> ready_;
  uint64_t random_;
  const std::function<void()>& body_;
  size_t alive_;
  unsigned current_ = 0;
  bool on_machine_ = false;
  Context scheduler_, machine_;  // the machine: a fiber on which what flies lands
  std::function<void()> landing_;
  std::string failure_;
  PlainWait barrier_{"in __syncthreads"}, collective_{"in a warp collective"};
  std::array<NamedBarrier, 16> named_;
  std::vector<std::function<void()>> flying_;
  Extension* extension_ = nullptr;
};

using Core = Uninterrupted;

}  // namespace cuda_emulator
