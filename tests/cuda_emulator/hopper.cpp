#include <algorithm>
#include <cstdlib>

#include "hopper_state.h"

namespace cuda_emulator {
namespace {

std::string number(int64_t n) {
  return std::to_string(n);
}

// The barrier at this address, which must have been initialised.
Mbarrier& barrier_at(uint64_t* barrier, const char* file, int line) {
  Hopper& h = hopper();
  const auto found = h.barriers.find(barrier);
  if (found == h.barriers.end())
    Block::running->stop("an mbarrier that was not initialised, " +
                         Block::running->who(file, line));
  return found->second;
}

size_t shared_or_stop(const void* p, size_t bytes, size_t alignment, const char* what,
                      const char* file, int line) {
  Block& b = *Block::running;
  const size_t at = b.shared().offset(p, bytes);
  if (at == ~size_t(0))
    b.stop(std::string(what) + " of " + number(int64_t(bytes)) +
           " bytes does not lie in a shared array, " + b.who(file, line));
  if (at % alignment)
    b.stop(std::string(what) + " at " + number(int64_t(at % alignment)) +
           " bytes past a multiple of " + number(int64_t(alignment)) + ", " + b.who(file, line));
  return at;
}

void check_ready(const Mbarrier& m, const char* file, int line) {
  if (!m.fenced)
    Block::running->stop("an mbarrier that bulk copies can't see: no fence since its init, " +
                         Block::running->who(file, line));
}

// Lands the copy later, once.
void start(std::function<void()> land, bool store) {
  auto copy = std::make_shared<BulkCopy>();
  copy->land = std::move(land);
  Block& b = *Block::running;
  ++hopper().flying;
  if (store) hopper().open[b.current()].push_back(copy);
  b.later([copy] { copy->finish(); });
}

}  // namespace

Hopper& hopper() {
  return Block::running->extension<Hopper>();
}

std::string Mbarrier::describe() const {
  return "for mbarrier " + name + ", phase " + number(phase) + " (" + number(count - pending) +
         " of " + number(count) + " arrivals, " + number(bytes) + " bytes to come)";
}

void BulkCopy::finish() {
  if (!land) return;
  const auto now = std::move(land);
  land = nullptr;
  --hopper().flying;
  now();
}

void Mbarrier::settle() {
  if (pending || bytes) return;
  ++phase;
  pending = count;
  Block::running->wake_all(*this);
}

std::string Hopper::leftover() const {
  if (flying) return "the block exits while bulk copies are under way";
  for (const Warpgroup& g : groups)
    if (!g.queue.empty()) return "the block exits and has not waited for its wgmma";
  return "";
}

void barrier_init(uint64_t* barrier, int arrivals, const char* file, int line) {
  const Core core;
  const size_t at = shared_or_stop(barrier, 8, 8, "an mbarrier", file, line);
  if (arrivals < 1) Block::running->stop("an mbarrier for no arrivals");
  Mbarrier m;
  m.count = m.pending = arrivals;
  m.maker = Block::running->current();
  m.name = "at shared address " + number(int64_t(at));
  hopper().barriers[barrier] = m;
}

void fence_barrier_init() {
  const Core core;
  for (auto& [at, m] : hopper().barriers) m.fenced |= m.maker == Block::running->current();
}

void barrier_arrive(uint64_t* barrier, int64_t expect, const char* file, int line) {
  const Core core;
  Mbarrier& m = barrier_at(barrier, file, line);
  if (!m.pending)
    Block::running->stop("more than " + number(m.count) + " arrivals at mbarrier " + m.name +
                         " in phase " + number(m.phase) + ", " + Block::running->who(file, line));
  m.bytes += expect;
  --m.pending;
  m.settle();
}

void barrier_wait(uint64_t* barrier, int parity, const char* file, int line) {
  const Core core;
  Mbarrier& m = barrier_at(barrier, file, line);
  while ((m.phase & 1) == (parity & 1)) Block::running->sleep(m, file, line);
}

void tensor_copy(bool store, const TensorMap& map, void* shared, uint64_t* barrier,
                 const int (&at)[4], const char* file, int line) {
  const Core core;
  const size_t row = size_t(map.columns) * 2, bytes = row * size_t(map.rows);
  const size_t begin = shared_or_stop(shared, bytes, 1024, "a tile of a tensor map", file, line);
  Mbarrier* m = nullptr;
  if (!store) check_ready(*(m = &barrier_at(barrier, file, line)), file, line);
  int64_t c[4];
  std::copy(at, at + 4, c);
  start(
      [=] {
        for (int r = 0; r < map.rows; ++r) {
          const int64_t i[4] = {c[0], c[1] + r, c[2], c[3]};
          bool inside = true;
          int64_t from = 0;
          for (int d = 1; d < 4; ++d) {
            inside = inside && i[d] >= 0 && i[d] < map.sizes[d];
            from += i[d] * map.strides[d];
          }
          for (int col = 0; col < map.columns; ++col) {
            const size_t plain = begin + size_t(r) * row + size_t(col) * 2, to = swizzled(plain);
            const bool here = inside && c[0] + col >= 0 && c[0] + col < map.sizes[0];
            char* global = map.base + from + (c[0] + col) * 2;
            if (store) {
              if (here) memcpy(global, SharedMemory::async_view() + to, 2);
              continue;
            }
            uint16_t value = 0;
            if (here) memcpy(&value, global, 2);
            memcpy(SharedMemory::async_view() + to, &value, 2);
            memcpy(SharedMemory::window() + to, &value, 2);
          }
        }
        if (m) m->bytes -= int64_t(bytes), m->settle();
      },
      store);
}

void bulk_load(void* to, const void* from, int bytes, uint64_t* barrier, const char* file,
               int line) {
  const Core core;
  Mbarrier& m = barrier_at(barrier, file, line);
  check_ready(m, file, line);
  const size_t begin = shared_or_stop(to, size_t(bytes), 16, "a bulk copy", file, line);
  if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    Block::running->stop("a bulk copy of other than whole, aligned 16 bytes, " +
                         Block::running->who(file, line));
  start(
      [=, &m] {
        memcpy(SharedMemory::window() + begin, from, size_t(bytes));
        memcpy(SharedMemory::async_view() + begin, from, size_t(bytes));
        m.bytes -= bytes;
        m.settle();
      },
      false);
}

void bulk_commit() {
  const Core core;
  Hopper& h = hopper();
  const unsigned me = Block::running->current();
  h.committed[me].push_back(std::move(h.open[me]));
  h.open[me].clear();
}

void bulk_wait(int pending) {
  const Core core;
  auto& groups = hopper().committed[Block::running->current()];
  while (groups.size() > size_t(pending)) {
    for (const auto& copy : groups.front()) copy->finish();
    groups.pop_front();
  }
}

void fence_async() {
  const Core core;
  fence_barrier_init();
  Block::running->shared().fence();
}

uint32_t shared_address(const void* p, const char* file, int line) {
  const Core core;
  return uint32_t(shared_or_stop(p, 1, 1, "an address", file, line));
}

const char* check_tensor_map(const void* base, const int64_t (&sizes)[4],
                             const int64_t (&strides)[3], int rows) {
  if (reinterpret_cast<uintptr_t>(base) % 16) return "the address is no multiple of 16";
  for (const int64_t size : sizes)
    if (size < 1 || size > int64_t(1) << 32) return "a size outside 1 to 2^32";
  for (const int64_t stride : strides)
    if (stride < 16 || stride % 16 || stride >= int64_t(1) << 40) return "a stride";
  if (rows < 1 || rows > 256) return "a box of other than 1 to 256 rows";
  return nullptr;
}

bool emulates(const char* chip) {
  const char* set = getenv("HEXAD_EMULATED_CHIP");
  return set && strcmp(set, chip) == 0;
}

}  // namespace cuda_emulator
