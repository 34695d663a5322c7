// wgmma: 128 threads issue it together, it runs when one of them waits for it.
#include <limits>

#include "hopper_state.h"

namespace cuda_emulator {
namespace {

constexpr int kRows = 64, kDepth = 16;

float element(bool bf16, const char* at) {
  uint16_t bits;
  memcpy(&bits, at, 2);
  return bf16 ? __bfloat162float({bits}) : __half2float({bits});
}

struct Descriptor {
  size_t start, leading, stride;
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1 || (bits >> 49 & 7))
      Block::running->stop("a wgmma descriptor other than with the 128-byte swizzle");
  }
  // The shared address of element `k` of row `n` of a matrix read along K.
  size_t along(size_t n, size_t k) const {
    return swizzled(start + n / 8 * stride + n % 8 * 128 + k * 2);
  }
  // The same of a matrix whose rows are K.
  size_t across(size_t n, size_t k) const {
    return swizzled(start + n / 64 * leading + n % 64 * 2 + k / 8 * stride + k % 8 * 128);
  }
};

float shared_element(bool bf16, size_t address) {
  if (Block::running->shared().offset(SharedMemory::window() + address, 2) == ~size_t(0))
    Block::running->stop("wgmma reads shared address " + std::to_string(address) +
                         ", where no array is");
  return element(bf16, SharedMemory::async_view() + address);
}

void compute(const std::vector<Wgmma>& of) {
  const Wgmma& first = of[0];
  const size_t columns = size_t(first.columns);
  float a[kRows][kDepth];
  static float b[kDepth][256], d[kRows][256];
  for (size_t t = 0; t < kGroup && first.a; ++t) {
    const size_t row = t / 32 * 16 + t % 32 / 4, k = t % 4 * 2;
    for (size_t r = 0; r < 4; ++r)
      for (size_t half = 0; half < 2; ++half)
        a[row + r % 2 * 8][k + r / 2 * 8 + half] =
            element(first.bf16, reinterpret_cast<const char*>(of[t].a + r) + half * 2);
  }
  if (!first.a) {
    const Descriptor from(first.a_shared);
    for (size_t i = 0; i < kRows; ++i)
      for (size_t k = 0; k < kDepth; ++k) a[i][k] = shared_element(first.bf16, from.along(i, k));
  }
  const Descriptor from(first.b_shared);
  for (size_t k = 0; k < kDepth; ++k)
    for (size_t n = 0; n < columns; ++n)
      b[k][n] = shared_element(first.bf16, first.across ? from.across(n, k) : from.along(n, k));
  auto& accumulators = hopper().accumulators;
  std::vector<float*> held(kGroup);
  for (size_t t = 0; t < kGroup; ++t) held[t] = accumulators[of[t].d].values.data();
  // Element i of thread t: row and column of the 64 x N matrix.
  const auto row_of = [](size_t t, size_t i) { return t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8; };
  const auto column_of = [](size_t t, size_t i) { return i / 4 * 8 + t % 4 * 2 + i % 2; };
  for (size_t t = 0; t < kGroup; ++t)
    for (size_t i = 0; i < columns / 2; ++i)
      d[row_of(t, i)][column_of(t, i)] = first.add ? held[t][i] : 0.f;
  for (size_t i = 0; i < kRows; ++i)
    for (size_t k = 0; k < kDepth; ++k)
      for (size_t n = 0; n < columns; ++n) d[i][n] += a[i][k] * b[k][n];
  for (size_t t = 0; t < kGroup; ++t) {
    for (size_t i = 0; i < columns / 2; ++i) held[t][i] = d[row_of(t, i)][column_of(t, i)];
    const auto at = accumulators.find(of[t].d);
    if (--at->second.pending) continue;
    memcpy(of[t].d, at->second.values.data(), columns / 2 * sizeof(float));
    accumulators.erase(at);
  }
}

// All threads of the warpgroup have come: the operation starts.
void issue(Warpgroup& g, unsigned first) {
  Block& b = *Block::running;
  Hopper& h = hopper();
  const Wgmma& a = g.arriving[0];
  for (unsigned t = 0; t < kGroup; ++t) {
    const Wgmma& w = g.arriving[t];
    const std::string who =
        "thread " + std::to_string(first + t) + " " + Block::place(g.files[t], g.lines[t]);
    if (w.bf16 != a.bf16 || w.across != a.across || w.add != a.add || w.columns != a.columns ||
        !w.a != !a.a || w.a_shared != a.a_shared || w.b_shared != a.b_shared ||
        h.commits[first + t] != h.commits[first])
      return b.stop("wgmma differs among the threads of its warpgroup: " + who);
    if (!h.fenced[first + t]) return b.stop("wgmma without a fence since the last commit: " + who);
    Accumulator& held = h.accumulators[w.d];
    if (!held.pending++) {
      held.values.assign(w.d, w.d + w.columns / 2);
      std::fill(w.d, w.d + w.columns / 2, std::numeric_limits<float>::quiet_NaN());
    }
  }
  g.queue.push_back({h.commits[first], g.arriving});
}

}  // namespace

void wgmma(const Wgmma& what, const char* file, int line) {
  const Core core;
  Block& b = *Block::running;
  Hopper& h = hopper();
  const unsigned me = b.current(), first = me / kGroup * kGroup;
  if (first + kGroup > b.threads()) b.stop("wgmma needs whole warpgroups, " + b.who(file, line));
  if (h.groups.empty()) h.groups.resize(b.threads() / kGroup);
  Warpgroup& g = h.groups[me / kGroup];
  g.arriving.resize(kGroup);
  g.files.resize(kGroup);
  g.lines.resize(kGroup);
  g.arriving[me - first] = what;
  g.files[me - first] = file;
  g.lines[me - first] = line;
  if (++g.arrived < kGroup) return b.sleep(g, file, line);
  g.arrived = 0;
  issue(g, first);
  b.wake_all(g);
}

void wgmma_fence() {
  const Core core;
  hopper().fenced[Block::running->current()] = true;
}

void wgmma_commit() {
  const Core core;
  const unsigned me = Block::running->current();
  ++hopper().commits[me];
  hopper().fenced[me] = false;
}

void wgmma_wait(int pending, const char*, int) {
  const Core core;
  Hopper& h = hopper();
  const unsigned me = Block::running->current();
  if (h.groups.empty()) return;
  auto& queue = h.groups[me / kGroup].queue;
  while (!queue.empty() && queue.front().group < h.commits[me] - pending) {
    compute(queue.front().of);
    queue.pop_front();
  }
}

}  // namespace cuda_emulator
