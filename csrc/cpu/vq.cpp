// Nearest codebook entry. With many rows, products x.c - |c|^2 / 2 pick out in one pass the few
// entries that can be nearest, within the error that rounding may have made; their distances are
// then summed as they are defined, so the choice is the one that summing all of them would give.
#include "op/vq.h"

#include "cpu/dot.h"
#include "cpu/parallel.h"
#include "cpu/plain.h"
#include "cpu/weight_panel.h"

namespace hexad {
namespace {

constexpr int kGroup = 4 * kLanes;  // entries that share a lane's largest product
constexpr int64_t kMostRows = 768;  // rows that go through the codebook together
constexpr int kMostParts = 16;

struct Best {
  float distance;
  int64_t index;  // -1 - entry where a distance is NaN
};

// All distances from up to kRows rows to the entries begin to end - 1, after those before.
template <class T>
void all_distances(const VqArgs& a, int64_t row, int rows, int64_t begin, int64_t end, Best* best) {
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  for (int64_t e = begin; e < end; e += kColumns) {
    const int columns = int(std::min<int64_t>(kColumns, end - e));
    const T* entry = static_cast<const T*>(a.codebook) + e * a.codebook_stride;
    float distance[kRows * kColumns];
    dots(x, a.x_stride, rows, entry, a.codebook_stride, columns, a.features, SquaredDifference{},
         distance);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) {
        const float d = distance[r * kColumns + c];
        if (d < best[r].distance)
          best[r] = {d, e + c};
        else if (d != d && best[r].index >= 0)
          best[r] = {-__builtin_inff(), -1 - (e + c)};
      }
  }
}

template <class T>
void write(const VqArgs& a, int64_t row, const Best& best) {
  a.index[row] = best.index;
  if (best.index < 0) return;
  const T* entry = static_cast<const T*>(a.codebook) + best.index * a.codebook_stride;
  std::copy(entry, entry + a.features, static_cast<T*>(a.quantized) + row * a.quantized_stride);
}

// Few rows: threads share the codebook.
template <class T>
void few(const VqArgs& a) {
  const int64_t work = a.rows * a.entries * std::max<int64_t>(a.features, 1);
  const int64_t parts = std::clamp<int64_t>(std::min<int64_t>(parallel_threads(), work / 65536), 1,
                                            std::min<int64_t>(kMostParts, a.entries));
  Best best[kMostParts][kVqFew];
  parallel_for(parts, 1, [&](int64_t part, int64_t part_end) {
    for (; part < part_end; ++part) {
      std::fill_n(best[part], a.rows, Best{__builtin_inff(), 0});
      const int64_t begin = a.entries * part / parts, end = a.entries * (part + 1) / parts;
      for (int64_t row = 0; row < a.rows; row += kRows)
        all_distances<T>(a, row, int(std::min<int64_t>(kRows, a.rows - row)), begin, end,
                         best[part] + row);
    }
  });
  for (int64_t row = 0; row < a.rows; ++row) {
    Best found = best[0][row];
    for (int64_t part = 1; part < parts; ++part) {
      const Best& next = best[part][row];
      if (found.index >= 0 && (next.distance < found.distance || next.index < 0)) found = next;
    }
    write<T>(a, row, found);
  }
}

// Per row, the largest of each lane over a group's panels: products of R rows by V panels from the
// offset -|c|^2 / 2.
template <class Step, int V>
void products(const float* const* x, int64_t words, const float* panel, const float* offset,
              bool first, float* most, int64_t stride) {
  constexpr int R = kTileRows, N = V * kPanelRegs;
  const int64_t panel_stride = words * kLanes;
  reg sums[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[r][n] = load_reg(offset + n * kRegLanes);
  for (int64_t k = 0; k < words; ++k, panel += kLanes) {
    reg w[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      w[n] = load_reg(panel + n / kPanelRegs * panel_stride + n % kPanelRegs * kRegLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const reg one = set1_reg(x[r][k]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[r][n] = Step::add(one, w[n], sums[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int h = 0; h < kPanelRegs; ++h) {
      float* to = most + r * stride + h * kRegLanes;
      reg m = sums[r][h];
#pragma GCC unroll 8
      for (int n = kPanelRegs + h; n < N; n += kPanelRegs) m = larger(m, sums[r][n]);
      store_reg(to, first ? m : larger(m, load_reg(to)));
    }
}

// A part of the codebook in panels, with -|c|^2 / 2; lanes beyond the last entry never win.
struct Part {
  int64_t begin, count;
  float* panels;
  float offset[kVqPart];
  float longest;  // |c|^2
};

template <class T>
void pack(const VqArgs& a, Part& part) {
  part.longest = 0;
  const int64_t words = words_of<Step<T>>(a.features);
  for (int64_t e = 0; e < part.count; e += kLanes) {
    const int rows = int(std::min<int64_t>(kLanes, part.count - e));
    const T* entry = static_cast<const T*>(a.codebook) + (part.begin + e) * a.codebook_stride;
    float* panel = part.panels + e * words;
    pack_panel<Step<T>>(entry, a.codebook_stride, rows, a.features, 1, 1, panel);
    vf squares = zero();
    for (int64_t k = 0; k < words; ++k) {
      const vf word = load(panel + k * kLanes);
      if constexpr (Step<T>::kElements == 1) {
        squares = fma(word, word, squares);
      } else {
        const vf even = from_bits(bits(word) << 16);
        const vf odd = from_bits(bits(word) & set1i(int32_t(0xffff0000)));
        squares = fma(odd, odd, fma(even, even, squares));
      }
    }
    store(part.offset + e, squares * set1(-0.5f));
    float square[kLanes];
    store(square, squares);
    for (int i = 0; i < kLanes; ++i) {
      if (i >= rows) part.offset[e + i] = -__builtin_inff();
      if (!(square[i] <= part.longest)) part.longest = square[i];  // NaN stays
    }
  }
}

struct Seen {
  float square;          // |x|^2
  double most, longest;  // so far: the largest product, the longest entry
};

// The distances that can be the smallest, going by this part's products.
template <class T>
void choose(const VqArgs& a, int64_t row, const Part& part, const float* most, Seen& seen,
            Best& best) {
  const int64_t groups = (part.count + kGroup - 1) / kGroup;
  vf top = load(most);
  for (int64_t g = 1; g < groups; ++g) top = larger(top, load(most + g * kLanes));
  const double here = max_across(top);
  seen.most = std::max(seen.most, here);
  // A product is off by at most `off`, a distance by eps of itself, both taken twice over.
  const double eps = double(a.features + 16) * 0x1p-23;
  const double off = eps * (seen.longest + 0.5 * seen.square);
  const double distance = std::max(0.0, seen.square - 2 * (seen.most - off));
  const double slack = 2 * off + 2 * eps * distance + 0x1p-22 * std::abs(seen.most) + 1e-30;
  const float least = float(seen.most - slack);
  if (here < least) return;
  float lane[kLanes];
  store(lane, top);
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  for (int i = 0; i < kLanes; ++i) {
    if (lane[i] < least) continue;
    for (int64_t g = 0; g < groups; ++g) {
      if (most[g * kLanes + i] < least) continue;
      const T* entry[4];
      int64_t index[4];
      float d[4];
      for (int j = 0; j < 4; ++j) {
        index[j] = part.begin + std::min(g * kGroup + j * kLanes + i, part.count - 1);
        entry[j] = static_cast<const T*>(a.codebook) + index[j] * a.codebook_stride;
      }
      dot_block<1, 4>(&x, entry, a.features, SquaredDifference{}, d);
      for (int j = 0; j < 4; ++j)
        if (d[j] < best.distance || (d[j] == best.distance && index[j] < best.index))
          best = {d[j], index[j]};
    }
  }
}

// Beyond this, sums might overflow, and their differences be NaN.
HEXAD_INLINE bool tame(float square) {
  return square <= 1e36f;
}
constexpr int64_t kMostFeatures = 1 << 20;  // beyond, there is no bound on a product's error

template <class T>
void many(const VqArgs& a, int64_t row, int64_t end, float* workspace) {
  const int rows = int(end - row);
  Best best[kMostRows];
  Seen seen[kMostRows];
  for (int r = 0; r < rows; ++r) {
    best[r] = {__builtin_inff(), 0};
    const T* x = static_cast<const T*>(a.x) + (row + r) * a.x_stride;
    float square;
    dot_block<1, 1>(&x, &x, a.features, Product{}, &square);
    seen[r] = {square, -__builtin_inf(), 0};
  }
  const int64_t size = vq_part(a.features);
  Part part;
  part.panels = workspace;
  const int64_t words = words_of<Step<T>>(a.features);
  float* own = workspace + size * words;  // a tile's rows, where x is not float
  for (part.begin = 0; part.begin < a.entries; part.begin += size) {
    part.count = std::min(size, a.entries - part.begin);
    pack<T>(a, part);
    const int64_t panels = panels_of(part.count);
    for (int first = 0; first < rows; first += kTileRows) {
      const int count = std::min(kTileRows, rows - first);
      bool all = !tame(part.longest) || a.features > kMostFeatures;
      for (int r = 0; r < count; ++r) all |= !tame(seen[first + r].square);
      if (all) {
        for (int r = 0; r < count; r += kRows)
          all_distances<T>(a, row + first + r, std::min(kRows, count - r), part.begin,
                           part.begin + part.count, best + first + r);
        continue;
      }
      const float* x[kTileRows];
      for (int r = 0; r < kTileRows; ++r) {
        const T* from =
            static_cast<const T*>(a.x) + (row + first + std::min(r, count - 1)) * a.x_stride;
        if constexpr (std::is_same<T, float>::value) {
          x[r] = from;
        } else {
          using Out = std::conditional_t<Step<T>::kElements == 1, float, bf16>;
          float* to = own + r * words;
          if (words) to[words - 1] = 0;  // an odd count leaves half a word
          for (int64_t k = 0; k < a.features; ++k)
            put(reinterpret_cast<Out*>(to) + k, to_float(from[k]));
          x[r] = to;
        }
      }
      float most[kTileRows * kVqPart / 4];
      for (int64_t p = 0; p < panels;) {
        const float* panel = part.panels + p * kLanes * words;
        float* to = most + p / 4 * kLanes;
        const bool whole = panels - p >= kPanels;
        if (whole)
          products<Step<T>, kPanels>(x, words, panel, part.offset + p * kLanes, p % 4 == 0, to,
                                     kVqPart / 4);
        else
          products<Step<T>, 1>(x, words, panel, part.offset + p * kLanes, p % 4 == 0, to,
                               kVqPart / 4);
        p += whole ? kPanels : 1;
      }
      for (int r = 0; r < count; ++r) {
        Seen& s = seen[first + r];
        s.longest = std::max(s.longest, double(part.longest));
        choose<T>(a, row + first + r, part, most + r * kVqPart / 4, s, best[first + r]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) write<T>(a, row + r, best[r]);
}

template <class T>
void run(const VqArgs& a) {
  if (a.rows <= kVqFew) return few<T>(a);
  const int64_t threads = parallel_threads();
  const int64_t share = (a.rows + threads - 1) / threads;
  const int64_t grain = std::min(kMostRows, (share + kTileRows - 1) / kTileRows * kTileRows);
  parallel_for(a.rows, grain, [&](int64_t begin, int64_t end) {
    float* own = a.workspace + (threads > 1 ? parallel_thread() : 0) * vq_workspace(a.features);
    for (; begin < end; begin += kMostRows)
      many<T>(a, begin, std::min(end, begin + kMostRows), own);
  });
}

}  // namespace

namespace HEXAD_ISA {

void vq(const VqArgs& a) {
#if HEXAD_SHARES
  a.bf16 ? run<bf16>(a) : HEXAD_PLAIN::vq(a);
#else
  a.bf16 ? run<bf16>(a) : run<float>(a);
#endif
}

}  // namespace HEXAD_ISA
}  // namespace hexad
