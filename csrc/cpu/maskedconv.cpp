// Causal convolution. Each pixel's inputs are laid out as one row, channel by channel and tap by
// tap, the order in which a weight row lies in memory: no weight is ever repacked, which the form
// for one pixel could not afford, and nothing is cached that a change of the weights would outdate.
// Taps off the image or the mask read as zero, so a sum's order never depends on the pixel.
#include "op/maskedconv.h"

#include "cpu/dot.h"
#include "cpu/parallel.h"

namespace hexad {
namespace {

static_assert(kRows <= kMaskedConvPixels, "the workspace holds a block of rows");

// Weights of masked taps may be NaN, so zeros in x are not enough: their bits are cleared as well.
struct MaskedProduct {
  vi tap, advance, size, mask;

  MaskedProduct(int64_t taps, int64_t kernel) {
    int32_t first[kLanes];
    for (int i = 0; i < kLanes; ++i) first[i] = int32_t(i % kernel);
    tap = load(first);
    advance = set1i(int32_t(kLanes % kernel));
    size = set1i(int32_t(kernel));
    mask = set1i(int32_t(taps));
  }
  HEXAD_INLINE vf column(vf w) const { return from_bits(bits(w) & less_int(tap, mask)); }
  HEXAD_INLINE vf operator()(vf x, vf w, vf sum) const { return fma(x, w, sum); }
  HEXAD_INLINE void next() {
    const vi after = tap + advance;
    tap = after - (size & (less_int(after, size) ^ set1i(-1)));
  }
};

// The inputs that pixel (row, col) sees, zero elsewhere.
template <class T>
void gather(const MaskedConvArgs& a, int64_t batch, int64_t row, int64_t col, float* out) {
  const int64_t kernel = a.kernel_height * a.kernel_width;
  const int64_t top = row - a.kernel_height / 2, left = col - a.kernel_width / 2;
  std::fill(out, out + a.inputs * kernel, 0.f);
  const int64_t first = std::max<int64_t>(0, -left);
  for (int64_t i = std::max<int64_t>(0, -top); i * a.kernel_width < a.taps; ++i) {
    const int64_t in_mask = std::min(a.kernel_width, a.taps - i * a.kernel_width);
    const int64_t end = std::min(in_mask, a.width - left);
    const T* x = static_cast<const T*>(a.x) + batch * a.x_stride[0] + (top + i) * a.x_stride[2];
    float* to = out + i * a.kernel_width;
    for (int64_t c = 0; c < a.inputs; ++c)
      for (int64_t j = first; j < end; ++j)
        to[c * kernel + j] = to_float(x[c * a.x_stride[1] + (left + j) * a.x_stride[3]]);
  }
}

template <class T, class Step>
void pixels(const MaskedConvArgs& a, const Step& step, float* inputs, int64_t begin, int64_t end,
            int64_t output, int64_t output_end) {
  const int64_t size = a.inputs * a.kernel_height * a.kernel_width;
  const int64_t wide = a.col_end - a.col_begin, image = (a.row_end - a.row_begin) * wide;
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t p = begin; p < end; p += kRows) {
    const int rows = int(std::min<int64_t>(kRows, end - p));
    T* y[kRows];
    for (int r = 0; r < rows; ++r) {
      const int64_t batch = (p + r) / image, at = (p + r) % image;
      gather<T>(a, batch, a.row_begin + at / wide, a.col_begin + at % wide, inputs + r * size);
      y[r] = static_cast<T*>(a.y) + batch * a.outputs * image + at;
    }
    for (int64_t o = output; o < output_end; o += kColumns) {
      const int columns = int(std::min<int64_t>(kColumns, output_end - o));
      float sums[kRows * kColumns];
      dots(inputs, size, rows, static_cast<const T*>(a.weight) + o * size, size, columns, size,
           step, sums);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
          const float b = bias ? to_float(bias[o + c]) : 0.f;
          put(y[r] + (o + c) * image, sums[r * kColumns + c] + b);
        }
    }
  }
}

template <class T>
void run(const MaskedConvArgs& a) {
  const int64_t kernel = a.kernel_height * a.kernel_width;
  const int64_t count = a.batch * (a.row_end - a.row_begin) * (a.col_end - a.col_begin);
  const int64_t down = (count + kRows - 1) / kRows;
  // Few pixels: threads share a block of them, by outputs.
  const int64_t part = down >= 8 ? std::max<int64_t>(a.outputs, 1) : 2 * kColumns;
  const int64_t across = (a.outputs + part - 1) / part;
  const int64_t cost = kRows * part * a.inputs * kernel;
  const bool parallel = parallel_threads() > 1;
  const auto body = [&](int64_t item, int64_t end) {
    float* inputs = a.workspace + (parallel ? parallel_thread() : 0) * a.workspace_stride;
    for (; item < end; ++item) {
      const int64_t p = item / across * kRows, o = item % across * part;
      const int64_t p_end = std::min(count, p + kRows), o_end = std::min(a.outputs, o + part);
      if (a.taps == kernel)
        pixels<T>(a, Product{}, inputs, p, p_end, o, o_end);
      else
        pixels<T>(a, MaskedProduct(a.taps, kernel), inputs, p, p_end, o, o_end);
    }
  };
  parallel_for(down * across, std::max<int64_t>(1, 131072 / std::max<int64_t>(cost, 1)), body);
}

}  // namespace

namespace HEXAD_ISA {

void maskedconv(const MaskedConvArgs& a) {
  a.bf16 ? run<bf16>(a) : run<float>(a);
}

}  // namespace HEXAD_ISA
}  // namespace hexad
