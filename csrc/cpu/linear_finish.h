// What linear does with a finished sum: bias, activation or gate, residual, one rounding.
#pragma once

#include "cpu/math.h"
#include "op/linear.h"

namespace hexad {
namespace {

constexpr int kPanel = 16;                // outputs of a panel, one to a lane
constexpr int kPanels = 4;                // the most panels of an item of work
constexpr int kWidth = kPanel * kPanels;  // floats from one row of an item's sums to the next
constexpr int kItemRows = 264;            // the most rows of an item
static_assert(kPanel == kLanes, "one vector finishes a panel's row");

// The panels that one item of work sums: the weight's row in lane 0 of each, and how many of its
// lanes exist. A gated item holds gates in the first half of its panels, their ups in the second.
template <int N>
struct GroupOf {
  int panels;
  int64_t row[N];
  int lanes[N];
};
using Group = GroupOf<kPanels>;

HEXAD_INLINE vf activate(vf z, int activation) {
  switch (activation) {
    case 1:
      return max(zero(), z);
    case 2:
    case 8:
      return z * normal_cdf(z);
    case 3: {
      // (1 + tanh u) / 2 = sigmoid(2 u)
      const vf cube = fma(z * z, z * set1(0.044715f), z);
      return z * sigmoid(cube * set1(1.5957691216057308f));
    }
    case 4:
    case 7:
      return z * sigmoid(z);
    case 5:
      return tanh(z);
    case 6:
      return sigmoid(z);
    default:
      return z;
  }
}

HEXAD_INLINE bool gated(const LinearArgs& a) {
  return a.activation >= 7;
}

// Vectors that follow each other in memory.
HEXAD_INLINE void store_two(float* to, vf a, vf b) {
  store(to, a), store(to + kLanes, b);
}
HEXAD_INLINE void store_two(bf16* to, vf a, vf b) {
#if defined(__AVX512BW__)
  const auto rounded = [](vf v) __attribute__((always_inline)) {
    const __m512i u = (__m512i)v;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
  };
  alignas(64) static const uint16_t high[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(rounded(a), load<__m512i>(high), rounded(b)));
#else
  store(to, a), store(to + kLanes, b);
#endif
}

// Two whole panels side by side, without activation.
template <class T>
void finish_plain(const LinearArgs& a, int64_t at, int64_t first, int64_t rows, const float* sums,
                  int64_t width) {
  const T* bias = static_cast<const T*>(a.bias);
  const vf low = bias ? load(bias + at) : zero(), high = bias ? load(bias + at + 16) : zero();
  const int64_t more_stride = a.residual_stride, y_stride = a.y_stride;
  const T* more =
      a.residual ? static_cast<const T*>(a.residual) + first * more_stride + at : nullptr;
  T* y = static_cast<T*>(a.y) + first * y_stride + at;
  for (int64_t r = 0; r < rows; ++r) {
    vf z = load(sums + r * width) + low, u = load(sums + r * width + kPanel) + high;
    if (more) {
      z = z + load(more + r * more_stride);
      u = u + load(more + r * more_stride + kPanel);
    }
    store_two(y + r * y_stride, z, u);
  }
}

template <class T, int N>
void finish(const LinearArgs& a, const GroupOf<N>& group, int64_t first, int64_t rows,
            const float* sums, int64_t width = kWidth) {
  const T* bias = static_cast<const T*>(a.bias);
  const int outputs = gated(a) ? group.panels / 2 : group.panels;
  for (int p = 0; p < outputs; ++p) {
    const int lanes = group.lanes[p];
    const int64_t at = group.row[p];
    if (!a.activation && p + 1 < outputs && group.lanes[p + 1] == kPanel) {
      finish_plain<T>(a, at, first, rows, sums + p * kPanel, width);
      ++p;
      continue;
    }
    const vf b = bias ? load_part(bias + at, lanes) : zero();
    const vf up = bias && gated(a) ? load_part(bias + group.row[outputs + p], lanes) : zero();
    for (int64_t r = 0; r < rows; ++r) {
      const float* sum = sums + r * width + p * kPanel;
      vf z = activate(load(sum) + b, a.activation);
      if (gated(a)) z = z * (load(sum + outputs * kPanel) + up);
      if (a.residual) {
        const int64_t from = (first + r) * a.residual_stride + at;
        z = z + load_part(static_cast<const T*>(a.residual) + from, lanes);
      }
      T* y = static_cast<T*>(a.y) + (first + r) * a.y_stride + at;
      lanes == kLanes ? store(y, z) : store_first(y, z, lanes);
    }
  }
}

}  // namespace
}  // namespace hexad
