// A block per row. Instead of a sort, the least token that stays is found digit by digit, most
// significant first, on a key that orders as logit and index do (radix select): a pass over the row
// sums, for each value of a digit, how many tokens have it or what they weigh. Weights are
// integers, so that sums are exact in any order: the same token for any order of threads. The token
// drawn is found the same way, by index. Nothing here can raise: a row without an answer gets a
// SampleStatus.
#include "cpu/philox.h"
#include "cuda/wide.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kDigit = 11, kBins = 1 << kDigit, kOwn = kBins / kThreads;
constexpr int kAtOnce = 4;  // loads of a thread
constexpr int kCopies = 2;  // of the sums, lest warps wait for each other

// Orders as the float does; -0 is 0, NaN comes last.
__device__ inline uint32_t order_key(float l) {
  if (l != l) return 0xffffffffu;
  const uint32_t u = __float_as_uint(l + 0.f);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

template <class T>
struct Row {
  const T* logits;
  int64_t n;
  int index_bits;
  float max, temperature, unit;  // unit: the integer weight of the largest logit

  // f(index, logit) for this thread's part of tokens [begin, end), by rising index. 64 bytes are
  // asked for at once: a row is one block's, and must keep its multiprocessor's share of the memory
  // busy.
  template <class F>
  __device__ void each(int64_t begin, int64_t end, const F& f) const {
    constexpr int64_t kSize = kWide<T>, kStep = kThreads * kSize;
    const int64_t before = int64_t(reinterpret_cast<uintptr_t>(logits + begin) % 16 / sizeof(T));
    for (int64_t i = begin - before + int64_t(threadIdx.x) * kSize; i < end; i += kAtOnce * kStep) {
      uint4 raw[kAtOnce];
#pragma unroll
      for (int v = 0; v < kAtOnce; ++v) {
        const int64_t at = i + v * kStep;
        if (at >= begin && at + kSize <= end) raw[v] = *reinterpret_cast<const uint4*>(logits + at);
      }
#pragma unroll
      for (int v = 0; v < kAtOnce; ++v) {
        const int64_t at = i + v * kStep;
        if (at >= begin && at + kSize <= end) {
          T element[kWide<T>];
          memcpy(element, &raw[v], sizeof element);
#pragma unroll
          for (int j = 0; j < kSize; ++j) f(at + j, to_float(element[j]));
        } else {
          for (int64_t j = at < begin ? begin : at; j < at + kSize && j < end; ++j)
            f(j, to_float(logits[j]));
        }
      }
    }
  }

  __device__ float weight(float l) const { return l == max ? 1.f : expf((l - max) / temperature); }
  __device__ uint64_t mass(float l) const { return uint64_t(weight(l) * unit); }
  // Largest first, then by index.
  __device__ uint64_t rank(int64_t i, float l) const {
    return uint64_t(order_key(l)) << index_bits | place(i);
  }
  __device__ uint64_t place(int64_t i) const {
    return (uint64_t(1) << index_bits) - 1 - uint64_t(i);
  }
};

struct Sums {
  unsigned low[kCopies][kBins], high[kCopies][kBins];

  __device__ void clear() {
    for (int i = int(threadIdx.x); i < kCopies * kBins; i += kThreads) low[0][i] = high[0][i] = 0;
  }
  __device__ void add(unsigned bin, uint64_t value) {
    const int copy = int(threadIdx.x) / 32 % kCopies;
    const unsigned part = unsigned(value), old = atomicAdd(&low[copy][bin], part);
    const unsigned rest = unsigned(value >> 32) + (old + part < old);
    if (rest) atomicAdd(&high[copy][bin], rest);
  }
  __device__ uint64_t operator[](int bin) const {
    uint64_t all = 0;
    for (int c = 0; c < kCopies; ++c) all += uint64_t(high[c][bin]) << 32 | low[c][bin];
    return all;
  }
};

// A share of a total: of integers, the least sum that is no less. 1 at least, so that a token
// stays.
__device__ inline uint64_t share(double of, uint64_t total) {
  const uint64_t sum = uint64_t(ceil(of * double(total)));
  return sum < 1 ? 1 : sum > total ? total : sum;
}

struct Found {
  uint64_t target, above;  // above: the sum of the larger digits
  uint64_t here;           // the sum of this digit
  unsigned digit;
};

// The digit where the sum, from the largest digit on, reaches the target. target(total) is asked
// when the first digit is.
template <class Target>
__device__ inline void find_digit(const Sums& sums, bool first, const Target& target,
                                  Found& found) {
  HEXAD_SHARED(uint64_t, warps, [kWarps]);
  const int i = int(threadIdx.x), lane = i % 32, warp = i / 32;
  // A thread has kOwn values of the digit, the first thread the largest.
  const int top = kBins - 1 - kOwn * i;
  uint64_t own[kOwn], all = 0;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) all += own[j] = sums[top - j];
  uint64_t upto = all;
  for (int n = 1; n < 32; n *= 2) {
    const uint64_t other = __shfl_up_sync(kFullWarp, upto, n);
    if (lane >= n) upto += other;
  }
  if (lane == 31) warps[warp] = upto;
  const uint64_t larger = first ? 0 : found.above, aimed = found.target;
  __syncthreads();
  uint64_t before = larger, total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += warps[w];
    total += warps[w];
  }
  const uint64_t aim = first ? target(total) : aimed;
  before += upto - all;
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    if (before < aim && before + own[j] >= aim) found = {aim, before, own[j], unsigned(top - j)};
    before += own[j];
  }
  __syncthreads();
}

// The rank of the last token that stays when tokens of at least `least` are taken, largest first,
// until what they count (or weigh) reaches the target.
template <bool kMass, class T, class Target>
__device__ inline uint64_t last_kept(const Row<T>& row, uint64_t least, const Target& target,
                                     Sums& sums, Found& found) {
  uint64_t prefix = 0;
  int known = 32 + row.index_bits;
  for (bool first = true; known > 0; first = false) {
    const int left = known > row.index_bits ? known - row.index_bits : known;
    const int bits = left < kDigit ? left : kDigit, shift = known - bits;
    sums.clear();
    __syncthreads();
    row.each(0, row.n, [&](int64_t i, float l) {
      const uint64_t rank = row.rank(i, l);
      if (rank < least || rank >> known != prefix) return;
      const uint64_t value = kMass ? row.mass(l) : 1;
      if (value) sums.add(unsigned(rank >> shift) & ((1u << bits) - 1), value);
    });
    __syncthreads();
    find_digit(sums, first, target, found);
    prefix = prefix << bits | found.digit;
    known = shift;
    if (found.above + found.here == found.target) break;  // all of them stay
    if (known == row.index_bits && found.here == (kMass ? row.mass(logit_of(uint32_t(prefix))) : 1))
      break;  // there is but one
  }
  return prefix << known;
}

// The first token of those that stay, by index, where the sum of weights reaches u of the whole.
template <class T>
__device__ inline int64_t drawn(const Row<T>& row, uint64_t least, float min_p, double u,
                                Sums& sums, Found& found) {
  const int64_t last = int64_t(row.place(0));
  uint64_t prefix = 0;
  int known = row.index_bits;
  for (bool first = true; known > 0; first = false) {
    const int bits = known < kDigit ? known : kDigit, shift = known - bits;
    const int64_t begin = last + 1 - int64_t((prefix + 1) << known),
                  end = last + 1 - int64_t(prefix << known);
    sums.clear();
    __syncthreads();
    row.each(begin > 0 ? begin : 0, end < row.n ? end : row.n, [&](int64_t i, float l) {
      if (row.rank(i, l) < least || !(row.weight(l) >= min_p)) return;
      const uint64_t value = row.mass(l);
      if (value) sums.add(unsigned(row.place(i) >> shift) & ((1u << bits) - 1), value);
    });
    __syncthreads();
    find_digit(sums, first, [&](uint64_t total) { return share(u, total); }, found);
    prefix = prefix << bits | found.digit;
    known = shift;
  }
  return last - int64_t(prefix);
}

template <class T>
__device__ inline int64_t token_of(const SampleArgs& a, int64_t b, Sums& sums, Found& found) {
  const float temperature = a.temperature[b], top_p = a.top_p[b], min_p = a.min_p[b];
  const int64_t k = a.top_k[b], position = a.position[b];
  if (!(temperature >= 0 && temperature < INFINITY && top_p >= 0 && top_p <= 1 && min_p >= 0 &&
        min_p <= 1 && k >= 0 && position >= 0))
    return kSampleParameter;
  Row<T> row{static_cast<const T*>(a.logits) + b * a.logits_stride,
             a.vocabulary,
             1,
             0.f,
             temperature,
             0.f};
  while (int64_t(1) << row.index_bits < row.n) ++row.index_bits;
  row.unit = float(uint64_t(1) << (62 - row.index_bits));

  // The largest logit, the first that has it.
  uint64_t best = 0;
  row.each(0, row.n, [&](int64_t i, float l) {
    const uint64_t own = uint64_t(order_key(l)) << 32 | (0xffffffffu - unsigned(i));
    best = own > best ? own : best;
  });
  HEXAD_SHARED(uint64_t, bests, [kWarps]);
  for (int n = 16; n > 0; n /= 2) {
    const uint64_t other = __shfl_xor_sync(kFullWarp, best, n);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) best = bests[w] > best ? bests[w] : best;
  const uint32_t key = uint32_t(best >> 32);
  if (key == 0xffffffffu) return kSampleNaN;
  row.max = logit_of(key);
  if (row.max == -INFINITY) return kSampleNothing;
  if (temperature == 0) return int64_t(0xffffffffu - uint32_t(best));

  uint64_t least = 0;
  if (k > 0 && k < row.n)
    least = last_kept<false>(row, least, [&](uint64_t) { return uint64_t(k); }, sums, found);
  if (top_p < 1)
    least = last_kept<true>(
        row, least, [&](uint64_t total) { return share(double(top_p), total); }, sums, found);
  uint32_t c[4][1] = {{~0u}, {~0u}, {uint32_t(position)}, {uint32_t(uint64_t(position) >> 32)}};
  philox(c, uint64_t(a.seeds[b]));
  return drawn(row, least, min_p, uniform52(c[0][0], c[1][0]), sums, found);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SampleArgs a) {
  HEXAD_SHARED(Sums, sums, );
  HEXAD_SHARED(Found, found, );
  const int64_t token = token_of<T>(a, blockIdx.x, sums, found);
  if (threadIdx.x == 0) a.out[blockIdx.x] = token;
}

}  // namespace

void sample(const SampleArgs& args, hexad_stream stream) {
  if (args.batch == 0) return;
  launch("sample",
         args.bf16  ? sample_kernel<bf16>
         : args.f16 ? sample_kernel<f16>
                    : sample_kernel<float>,
         blocks("sample", args.batch), kThreads, 0, stream, args);
}

}  // namespace cuda
}  // namespace hexad
