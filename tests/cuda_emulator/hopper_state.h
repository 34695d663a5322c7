// What the emulator keeps for the functions of hopper.h while a block runs.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "block.h"
#include "hopper_api.h"

namespace cuda_emulator {

struct Mbarrier : Waiting {
  std::string name;
  int count = 0, pending = 0;
  int64_t bytes = 0, phase = 0;
  unsigned maker = 0;  // the thread that initialised it
  bool fenced = false;
  std::string describe() const override;
  void settle();  // ends the phase if nothing is missing
};

// A bulk copy that has started.
struct BulkCopy {
  std::function<void()> land;
  void finish();  // lands it, once
};

// A thread's accumulators while wgmma holds them.
struct Accumulator {
  std::vector<float> values;
  int pending = 0;
};

struct Warpgroup : Waiting {
  struct Operation {
    int64_t group;          // how many groups had been committed before it
    std::vector<Wgmma> of;  // of each thread
  };
  unsigned arrived = 0;
  std::vector<Wgmma> arriving;
  std::vector<const char*> files;
  std::vector<int> lines;
  std::deque<Operation> queue;
  std::string describe() const override {
    return "in wgmma (" + std::to_string(arrived) + " of 128 threads have come)";
  }
};

struct Hopper : Extension {
  std::map<uint64_t*, Mbarrier> barriers;
  std::map<unsigned, std::vector<std::shared_ptr<BulkCopy>>> open;
  std::map<unsigned, std::deque<std::vector<std::shared_ptr<BulkCopy>>>> committed;
  std::vector<Warpgroup> groups;
  std::map<unsigned, int64_t> commits;  // of each thread
  std::map<unsigned, bool> fenced;      // since its last commit
  std::map<float*, Accumulator> accumulators;
  int flying = 0;  // bulk copies that have not landed
  std::string leftover() const override;
};

Hopper& hopper();

// Where the 128-byte swizzle puts the byte at this shared address.
inline size_t swizzled(size_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

}  // namespace cuda_emulator
