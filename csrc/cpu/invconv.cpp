// y = W x + bias at every pixel. Pixels are lanes; the batch's pixels form one line, cut into
// panels that are packed once and meet every row of W.
#include "op/invconv.h"

#include <algorithm>
#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/stores.h"

namespace hexad {
namespace {

constexpr int64_t kRun = 64;  // channels
constexpr int kRows = 6;      // of W at a time
// Vectors of pixels: twelve sums hide an fma's latency on two ports, and more pixels would push a
// panel of many channels out of the first-level cache.
constexpr int kWide = std::is_same<vf, f32x16>::value ? 2 : 1;
constexpr int64_t kPanel = kInvconvChannels * kLanes;  // floats on the stack

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

// Rows [first, first + kRows) of W times columns; rows past the last repeat it. Channels are summed
// in runs, and the runs then on top of the bias: long sums keep their accuracy. column(channel,
// vector) reads x, `line` holds what is summed so far, put(row, vector, sum) takes the whole sums.
template <int V, class Column, class Put>
HEXAD_INLINE void rows(const InvconvArgs& a, int64_t first, const Column& column,
                       float (*line)[V * kLanes], const Put& put) {
  const float *w[kRows], *bias[kRows];
  const float none = 0.f;
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = std::min(first + r, a.channels - 1);
    w[r] = a.weight + row * a.channels;
    bias[r] = a.bias ? a.bias + row : &none;
  }
  for (int64_t begin = 0; begin < a.channels; begin += kRun) {
    vf sum[kRows][V];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    const int64_t end = std::min(begin + kRun, a.channels);
    for (int64_t c = begin; c < end; ++c) {
      vf x[V];
      for (int v = 0; v < V; ++v) x[v] = column(c, v);
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = fma(set1(w[r][c]), x[v], sum[r][v]);
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) {
        float* so_far = line[r] + v * kLanes;
        const vf all = (begin ? load(so_far) : set1(*bias[r])) + sum[r][v];
        if (end < a.channels)
          store(so_far, all);
        else
          put(r, v, all);
      }
  }
}

template <class T>
HEXAD_INLINE void ask_column(const T* at, int64_t n, bool to_write = false) {
  for (int64_t i = 0; i < n; i += 64 / int64_t(sizeof(T)))
    to_write ? __builtin_prefetch(at + i, 1) : __builtin_prefetch(at + i, 0, 2);
}

// Where a panel's pixels are one image's, the first rows read them where they lie and leave the
// panel behind, sums are stored from registers, and the next panel is asked for beside the
// products.
template <class T, int V>
void panels(const InvconvArgs& a) {
  constexpr int64_t columns = V * kLanes;
  const T* const x = static_cast<const T*>(a.x);
  T* const y = static_cast<T*>(a.y);
  const int64_t total = a.batch * a.pixels, count = (total + columns - 1) / columns;
  // Where threads outnumber panels, rows of W are shared out too: a task is one of `cuts` parts of
  // a panel.
  const int64_t blocks = (a.channels + kRows - 1) / kRows, threads = parallel_threads();
  int64_t cuts = 1;
  if (count && count < threads) cuts = std::min(2 * threads / count, std::max<int64_t>(1, blocks));
  const int64_t each = (blocks + cuts - 1) / cuts * kRows, work = each * a.channels * columns;
  const bool past = beyond_cache(total * a.channels * int64_t(sizeof(T)));
  const auto run = [&](int64_t first, int64_t last) {
    alignas(64) float panel[kPanel];
    alignas(64) float line[kRows][columns];
    const auto packed = [&](int64_t c, int v) __attribute__((always_inline)) {
      return load(panel + (c * V + v) * kLanes);
    };
    const auto straight = [&](int64_t at, int64_t begin,
                              int64_t end) __attribute__((always_inline)) {
      const int64_t channel = at / a.pixels * a.channels, pixel = at % a.pixels;
      const T* const from = x + channel * a.pixels + pixel;
      T* const to = y + channel * a.pixels + pixel;
      const int64_t after = at + columns;
      const T* const next = x + after / a.pixels * a.channels * a.pixels + after % a.pixels;
      const bool more = cuts == 1 && after < std::min(total, last * columns);
      const bool stream = past && streams(to) && a.pixels * int64_t(sizeof(T)) % kStreamAlign == 0;
      for (int64_t o = begin; o < end; o += kRows) {
        const int64_t live = std::min<int64_t>(kRows, end - o);
        for (int64_t r = o; r < o + live; ++r) {
          if (more) ask_column(next + r * a.pixels, columns);
          if (!stream) ask_column(to + r * a.pixels, columns, true);
        }
        const auto put_row = [&](int r, int v, vf sum) __attribute__((always_inline)) {
          if (r < live) put(to + (o + r) * a.pixels + v * kLanes, sum, stream);
        };
        if (o > begin)
          rows<V>(a, o, packed, line, put_row);
        else
          rows<V>(
              a, o,
              [&](int64_t c, int v) __attribute__((always_inline)) {
                const vf one = load(from + c * a.pixels + v * kLanes);
                store(panel + (c * V + v) * kLanes, one);
                return one;
              },
              line, put_row);
      }
    };
    const auto bent = [&](int64_t at, int64_t begin, int64_t end) {
      const int64_t stop = std::min(at + columns, total);
      if (stop < at + columns) std::fill_n(panel, a.channels * columns, 0.f);
      parts(a, at, stop, [&](int64_t column, int64_t image, int64_t pixel, int64_t n) {
        const T* from = x + image * a.channels * a.pixels + pixel;
        for (int64_t c = 0; c < a.channels; ++c)
          move(panel + c * columns + column, from + c * a.pixels, n);
      });
      for (int64_t o = begin; o < end; o += kRows) {
        rows<V>(a, o, packed, line, [&](int r, int v, vf sum) __attribute__((always_inline)) {
          store(line[r] + v * kLanes, sum);
        });
        parts(a, at, stop, [&](int64_t column, int64_t image, int64_t pixel, int64_t n) {
          T* to = y + (image * a.channels + o) * a.pixels + pixel;
          for (int64_t r = 0; r < std::min<int64_t>(kRows, end - o); ++r)
            move(to + r * a.pixels, line[r] + column, n, past);
        });
      }
    };
    for (int64_t task = first; task < last; ++task) {
      const int64_t at = task / cuts * columns, begin = task % cuts * each;
      const int64_t end = std::min(begin + each, a.channels);
      at % a.pixels + columns <= a.pixels ? straight(at, begin, end) : bent(at, begin, end);
    }
    if (past) drain();
  };
  parallel_for(count * cuts, std::max<int64_t>(1, (1 << 18) / work), run);
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
