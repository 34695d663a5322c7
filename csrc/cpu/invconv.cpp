// y = W x + bias at every pixel. Pixels are lanes; the batch's pixels form one line, cut into
// panels that are packed once and meet every row of W.
#include "op/invconv.h"

#include <algorithm>
#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

constexpr int64_t kRun = 64;                                    // channels
constexpr int kRows = 6;                                        // of W at a time
constexpr int kWide = std::is_same<vf, f32x16>::value ? 4 : 1;  // vectors of pixels
constexpr int64_t kPanel = kInvconvChannels * kLanes;           // floats on the stack

template <class To, class From>
HEXAD_INLINE void move(To* to, const From* from, int64_t n, bool past = false) {
  past = past && streams(to);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) put(to + i, load(from + i), past);
  if (i < n) store_part(to + i, load_part(from + i, n - i), n - i);
}

// The parts of columns [begin, end) that lie in one image each: f(column in the panel, image,
// pixel, how many).
template <class F>
HEXAD_INLINE void parts(const InvconvArgs& a, int64_t begin, int64_t end, const F& f) {
  for (int64_t at = begin; at < end;) {
    const int64_t image = at / a.pixels, pixel = at % a.pixels;
    const int64_t n = std::min(end - at, a.pixels - pixel);
    f(at - begin, image, pixel, n);
    at += n;
  }
}

// Rows [first, first + kRows) of W times the panel; rows past the last repeat it. Channels are
// summed in runs, and the runs then on top of the bias: long sums keep their accuracy.
template <int V>
HEXAD_INLINE void rows(const InvconvArgs& a, const float* panel, int64_t first,
                       float (*line)[V * kLanes]) {
  const float* w[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = std::min(first + r, a.channels - 1);
    w[r] = a.weight + row * a.channels;
    for (int v = 0; v < V; ++v) store(line[r] + v * kLanes, set1(a.bias ? a.bias[row] : 0.f));
  }
  for (int64_t begin = 0; begin < a.channels; begin += kRun) {
    vf sum[kRows][V];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    const int64_t end = std::min(begin + kRun, a.channels);
    for (int64_t c = begin; c < end; ++c) {
      vf x[V];
      for (int v = 0; v < V; ++v) x[v] = load(panel + (c * V + v) * kLanes);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = fma(set1(w[r][c]), x[v], sum[r][v]);
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) {
        float* to = line[r] + v * kLanes;
        store(to, load(to) + sum[r][v]);
      }
  }
}

template <class T, int V>
void panels(const InvconvArgs& a) {
  constexpr int64_t columns = V * kLanes;
  const T* const x = static_cast<const T*>(a.x);
  T* const y = static_cast<T*>(a.y);
  const int64_t total = a.batch * a.pixels, work = a.channels * a.channels * columns;
  const bool past = beyond_cache(total * a.channels * int64_t(sizeof(T)));
  parallel_for((total + columns - 1) / columns, std::max<int64_t>(1, (1 << 18) / work),
               [&](int64_t first, int64_t last) {
                 alignas(64) float panel[kPanel];
                 alignas(64) float line[kRows][columns];
                 for (int64_t p = first; p < last; ++p) {
                   const int64_t begin = p * columns, end = std::min(begin + columns, total);
                   if (end < begin + columns) std::fill_n(panel, a.channels * columns, 0.f);
                   parts(a, begin, end, [&](int64_t at, int64_t image, int64_t pixel, int64_t n) {
                     const T* from = x + image * a.channels * a.pixels + pixel;
                     for (int64_t c = 0; c < a.channels; ++c)
                       move(panel + c * columns + at, from + c * a.pixels, n);
                   });
                   for (int64_t o = 0; o < a.channels; o += kRows) {
                     rows<V>(a, panel, o, line);
                     parts(a, begin, end, [&](int64_t at, int64_t image, int64_t pixel, int64_t n) {
                       T* to = y + (image * a.channels + o) * a.pixels + pixel;
                       for (int64_t r = 0; r < std::min<int64_t>(kRows, a.channels - o); ++r)
                         move(to + r * a.pixels, line[r] + at, n, past);
                     });
                   }
                 }
                 if (past) drain();
               });
}

template <class T>
void run(const InvconvArgs& a) {
  if (a.channels * kWide <= kInvconvChannels) return panels<T, kWide>(a);
  panels<T, 1>(a);
}

}  // namespace

namespace HEXAD_ISA {

void invconv(const InvconvArgs& a) {
  a.bf16 ? run<bf16>(a) : run<float>(a);
}

}  // namespace HEXAD_ISA
}  // namespace hexad
