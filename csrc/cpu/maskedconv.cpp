// Causal convolution. A sum runs over the mask's taps in raster order, and over the inputs at each
// tap: only taps of the mask are multiplied, and all three forms (image, row, pixel) give the same
// bits. Places off the image count as zeros. The weights of a call are first laid out in
// panels (weight_panel.h); nothing is kept from one call to the next that a change of them would
// outdate.
#include "op/maskedconv.h"

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/plain.h"
#include "cpu/weight_panel.h"

namespace hexad {
namespace {

constexpr int kBlock = kMaskedConvBlock;

template <class T>
HEXAD_INLINE int64_t words_seen(const MaskedConvArgs& a) {
  return words_of<Step<T>>(a.inputs * a.taps);
}

struct Place {
  int64_t batch, row, col;
};

Place place_of(const MaskedConvArgs& a, int64_t pixel) {
  const int64_t wide = a.col_end - a.col_begin, image = (a.row_end - a.row_begin) * wide;
  const int64_t at = pixel % image;
  return {pixel / image, a.row_begin + at / wide, a.col_begin + at % wide};
}

template <class T>
void pack_panels(const MaskedConvArgs& a, int64_t begin, int64_t end) {
  const int64_t kernel = a.kernel_height * a.kernel_width, size = a.inputs * kernel;
  for (; begin < end; ++begin) {
    const int64_t o = begin * kLanes;
    pack_panel<Step<T>>(static_cast<const T*>(a.weight) + o * size, size,
                        int(std::min<int64_t>(kLanes, a.outputs - o)), a.inputs, kernel, a.taps,
                        a.workspace + o * words_seen<T>(a));
  }
}

// What a pixel sees, element by element: floats, or bfloat16 where they are multiplied in pairs.
template <class T, class Out>
void gather(const MaskedConvArgs& a, const Place& p, Out* out) {
  for (int64_t tap = 0; tap < a.taps; ++tap, out += a.inputs) {
    const int64_t row = p.row + tap / a.kernel_width - a.kernel_height / 2;
    const int64_t col = p.col + tap % a.kernel_width - a.kernel_width / 2;
    const T* x = static_cast<const T*>(a.x) + p.batch * a.x_stride[0] + row * a.x_stride[2] +
                 col * a.x_stride[3];
    const bool inside = row >= 0 && row < a.height && col >= 0 && col < a.width;
    for (int64_t c = 0; c < a.inputs; ++c)
      put(out + c, inside ? to_float(x[c * a.x_stride[1]]) : 0.f);
  }
}

// A few pixels: outputs in the lanes, each panel packed and used by one thread.
template <class T>
void few(const MaskedConvArgs& a, int64_t count) {
  const int64_t k = words_seen<T>(a), panels = panels_of(a.outputs);
  const int64_t image = (a.row_end - a.row_begin) * (a.col_end - a.col_begin);
  float* inputs = a.workspace + panels * kLanes * k;
  using Out = std::conditional_t<Step<T>::kElements == 1, float, bf16>;
  for (int64_t p = 0; p < count; ++p) {
    if (k) inputs[(p + 1) * k - 1] = 0;  // an odd count leaves half a word
    gather<T>(a, place_of(a, p), reinterpret_cast<Out*>(inputs + p * k));
  }
  const T* bias = static_cast<const T*>(a.bias);
  const int64_t groups = (panels + kMaskedConvGroup - 1) / kMaskedConvGroup;
  const int64_t cost = kMaskedConvGroup * kLanes * (count + 8) * std::max<int64_t>(k, 1);
  parallel_for(groups, std::max<int64_t>(1, 131072 / cost), [&](int64_t group, int64_t group_end) {
    for (; group < group_end; ++group) {
      const int64_t first = group * kMaskedConvGroup;
      const int64_t last = std::min(panels, first + kMaskedConvGroup);
      pack_panels<T>(a, first, last);
      for (int64_t p = 0; p < count; p += kTileRows) {
        const int rows = int(std::min<int64_t>(kTileRows, count - p));
        const float* x[kTileRows];
        for (int r = 0; r < rows; ++r) x[r] = inputs + (p + r) * k;
        float sums[kTileRows * kMaskedConvGroup * kLanes];
        multiply_rows<Step<T>>(x, rows, {1, 0, k}, a.workspace + first * kLanes * k, kLanes * k,
                               last - first, sums, kMaskedConvGroup * kLanes);
        for (int r = 0; r < rows; ++r) {
          const int64_t batch = (p + r) / image, at = (p + r) % image;
          T* y = static_cast<T*>(a.y) + batch * a.outputs * image + at;
          const int64_t end = std::min(a.outputs, last * kLanes);
          for (int64_t o = first * kLanes; o < end; ++o)
            put(y + o * image, sums[r * kMaskedConvGroup * kLanes + o - first * kLanes] +
                                   (bias ? to_float(bias[o]) : 0.f));
        }
      }
    }
  });
}

// A block of pixels falls into pieces that are contiguous in x, of up to 16.
struct Piece {
  Place place;
  int lane, length;
};

int pieces_of(const MaskedConvArgs& a, int64_t pixel, int lanes, Piece* piece) {
  int n = 0;
  for (int lane = 0; lane < lanes; ++n) {
    const Place p = place_of(a, pixel + lane);
    const int length = int(std::min<int64_t>({kLanes, lanes - lane, a.col_end - p.col}));
    piece[n] = {p, lane, length};
    lane += length;
  }
  return n;
}

// What a block sees: element k's lanes in out[k * kBlock], or two elements a word. Writes up to 15
// floats beyond, which the next k and in the end the workspace have room for; pieces go from left
// to right over what was written too much.
template <class T>
void gather_block(const MaskedConvArgs& a, const Piece* pieces, int n, float* out) {
  struct Source {
    const T* x;
    int lane, shift, length;
  } source[kBlock];
  const bool unit = a.x_stride[3] == 1;
  int64_t k = 0;
  for (int64_t tap = 0; tap < a.taps; ++tap) {
    for (int i = 0; i < n; ++i) {
      const Piece& p = pieces[i];
      const int64_t row = p.place.row + tap / a.kernel_width - a.kernel_height / 2;
      const int64_t col = p.place.col + tap % a.kernel_width - a.kernel_width / 2;
      const int64_t left = std::clamp<int64_t>(-col, 0, p.length);
      const int64_t end = std::min<int64_t>(p.length, a.width - col);
      const bool inside = row >= 0 && row < a.height && end > left;
      source[i] = {nullptr, p.lane, 0, 0};
      if (inside)
        source[i] = {static_cast<const T*>(a.x) + p.place.batch * a.x_stride[0] +
                         row * a.x_stride[2] + (col + left) * a.x_stride[3],
                     p.lane, int(left), int(end - left)};
    }
    for (int64_t c = 0; c < a.inputs; ++c, ++k) {
      const bool fresh = k % Step<T>::kElements == 0;
      for (int i = 0; i < n; ++i) {
        const Source& s = source[i];
        const T* x = s.x + c * a.x_stride[1];
        float* to = out + s.lane;
        if (s.length == kLanes && unit) {
          Step<T>::put(to, kBlock, k, load(x), fresh);
          continue;
        }
        if (fresh && (s.shift || !s.length)) Step<T>::put(to, kBlock, k, zero(), true);
        if (!s.length) continue;
        vf v;
        if (unit) {
          v = load_part(x, s.length);
        } else {
          float lanes[kLanes] = {};
          for (int j = 0; j < s.length; ++j) lanes[j] = to_float(x[j * a.x_stride[3]]);
          v = load(lanes);
        }
        Step<T>::put(to + s.shift, kBlock, k, v, fresh);
      }
    }
  }
}

// R outputs of a panel by N registers of pixels.
template <class Step, int R, int N>
void tile(const float* panel, const float* x, int64_t k, float* out) {
  reg sums[R][N];
  bool first = true;
  do {
    clear(sums);
    for (int64_t chain = std::min(k, kChain / Step::kElements); chain > 0;
         --chain, panel += kLanes, x += kBlock) {
      reg v[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) v[n] = load_reg(x + n * kRegLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const reg w = set1_reg(panel[r]);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[r][n] = Step::add(w, v[n], sums[r][n]);
      }
    }
    keep(sums, out, kBlock, first);
    first = false;
    k -= kChain / Step::kElements;
  } while (k > 0);
}

template <class Step, int R>
void tiles(const float* panel, const float* x, int64_t k, int lanes, float* out) {
  constexpr int N = kAccumulators / 6;
  for (int lane = 0; lane < lanes;) {
    const int rest = (lanes - lane + kRegLanes - 1) / kRegLanes;
    const int n = rest >= N ? N : rest >= 2 ? 2 : 1;
    const float* from = x + lane;
    if (n == N)
      tile<Step, R, N>(panel, from, k, out + lane);
    else if (n == 2)
      tile<Step, R, 2>(panel, from, k, out + lane);
    else
      tile<Step, R, 1>(panel, from, k, out + lane);
    lane += n * kRegLanes;
  }
}

template <class T>
void finish(const MaskedConvArgs& a, int64_t pixel, int lanes, int64_t o, const float* sums) {
  const int64_t image = (a.row_end - a.row_begin) * (a.col_end - a.col_begin);
  const float bias = a.bias ? to_float(static_cast<const T*>(a.bias)[o]) : 0.f;
  for (int lane = 0; lane < lanes; lane += kLanes) {
    const int n = std::min(kLanes, lanes - lane);
    const int64_t batch = (pixel + lane) / image, at = (pixel + lane) % image;
    T* y = static_cast<T*>(a.y) + (batch * a.outputs + o) * image + at;
    if (n == kLanes && at + kLanes <= image) {
      store(y, load(sums + lane) + set1(bias));
      continue;
    }
    for (int i = 0; i < n; ++i) {
      const int64_t next = (pixel + lane + i) / image - batch;
      put(y + i + next * (a.outputs - 1) * image, sums[lane + i] + bias);
    }
  }
}

// Pixels in the lanes: blocks of 64 against all panels.
template <class T>
void many(const MaskedConvArgs& a, int64_t count) {
  const int64_t k = words_seen<T>(a), panels = panels_of(a.outputs);
  const int64_t most = 131072 / (kLanes * std::max<int64_t>(k, 1));
  parallel_for(panels, std::max<int64_t>(1, most),
               [&](int64_t begin, int64_t end) { pack_panels<T>(a, begin, end); });
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  // Few blocks: threads share one, by outputs.
  const int threads = parallel_threads();
  const int64_t part = blocks >= 4 * threads ? panels : (panels + 3) / 4;
  const int64_t across = (panels + part - 1) / part;
  const int64_t cost = kBlock * part * kLanes * std::max<int64_t>(k, 1);
  float* scratch = a.workspace + panels * kLanes * k;
  const auto body = [&](int64_t item, int64_t item_end) {
    float* inputs = scratch + (threads > 1 ? parallel_thread() : 0) * (kBlock * k + kLanes);
    int64_t gathered = -1;
    for (; item < item_end; ++item) {
      const int64_t block = item / across, pixel = block * kBlock;
      const int lanes = int(std::min<int64_t>(kBlock, count - pixel));
      if (block != gathered) {
        Piece pieces[kBlock];
        gather_block<T>(a, pieces, pieces_of(a, pixel, lanes, pieces), inputs);
        gathered = block;
      }
      const int64_t last = std::min(panels, (item % across + 1) * part);
      for (int64_t p = item % across * part; p < last; ++p) {
        const float* panel = a.workspace + p * kLanes * k;
        const int outputs = int(std::min<int64_t>(kLanes, a.outputs - p * kLanes));
        for (int o = 0; o < outputs; o += 6) {
          float sums[6 * kBlock];
          const int rows = std::min(6, outputs - o);
          if (rows <= 1)
            tiles<Step<T>, 1>(panel + o, inputs, k, lanes, sums);
          else if (rows <= 4)
            tiles<Step<T>, 4>(panel + o, inputs, k, lanes, sums);
          else
            tiles<Step<T>, 6>(panel + o, inputs, k, lanes, sums);
          for (int r = 0; r < rows; ++r)
            finish<T>(a, pixel, lanes, p * kLanes + o + r, sums + r * kBlock);
        }
      }
    }
  };
  parallel_for(blocks * across, std::max<int64_t>(1, 131072 / cost), body);
}

template <class T>
void run(const MaskedConvArgs& a) {
  const int64_t count = a.batch * (a.row_end - a.row_begin) * (a.col_end - a.col_begin);
  count <= kBlock / 2 ? few<T>(a, count) : many<T>(a, count);
}

}  // namespace

namespace HEXAD_ISA {

void maskedconv(const MaskedConvArgs& a) {
#if HEXAD_SHARES
  a.bf16 ? run<bf16>(a) : HEXAD_PLAIN::maskedconv(a);
#else
  a.bf16 ? run<bf16>(a) : run<float>(a);
#endif
}

}  // namespace HEXAD_ISA
}  // namespace hexad
