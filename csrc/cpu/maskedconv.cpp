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

struct Pixel {
  int64_t batch, top, left;  // where the kernel's first tap lies
};

// The inputs that each pixel of a block sees, zero elsewhere. Neighbours in turn: they share lines
// of x, and channels often lie a multiple of 4 KB apart, where few lines fit the cache at once.
template <class T>
void gather(const MaskedConvArgs& a, const Pixel* pixel, int rows, float* out) {
  const int64_t kernel = a.kernel_height * a.kernel_width, size = a.inputs * kernel;
  std::fill(out, out + rows * size, 0.f);
  for (int64_t i = 0; i * a.kernel_width < a.taps; ++i) {
    const int64_t in_mask = std::min(a.kernel_width, a.taps - i * a.kernel_width);
    for (int64_t c = 0; c < a.inputs; ++c)
      for (int r = 0; r < rows; ++r) {
        const Pixel& p = pixel[r];
        if (p.top + i < 0) continue;
        const T* x = static_cast<const T*>(a.x) + p.batch * a.x_stride[0] + c * a.x_stride[1] +
                     (p.top + i) * a.x_stride[2];
        float* to = out + r * size + c * kernel + i * a.kernel_width;
        const int64_t end = std::min(in_mask, a.width - p.left);
        for (int64_t j = std::max<int64_t>(0, -p.left); j < end; ++j)
          to[j] = to_float(x[(p.left + j) * a.x_stride[3]]);
      }
  }
}

template <class T, class Step>
void pixels(const MaskedConvArgs& a, const Step& step, float* inputs, int64_t begin, int64_t end,
            int64_t output, int64_t output_end) {
  const int64_t size = a.inputs * a.kernel_height * a.kernel_width;
  const int64_t wide = a.col_end - a.col_begin, image = (a.row_end - a.row_begin) * wide;
  const T* bias = static_cast<const T*>(a.bias);
  const int rows = int(end - begin);
  Pixel pixel[kRows];
  T* y[kRows];
  for (int r = 0; r < rows; ++r) {
    const int64_t batch = (begin + r) / image, at = (begin + r) % image;
    pixel[r] = {batch, a.row_begin + at / wide - a.kernel_height / 2,
                a.col_begin + at % wide - a.kernel_width / 2};
    y[r] = static_cast<T*>(a.y) + batch * a.outputs * image + at;
  }
  gather<T>(a, pixel, rows, inputs);
  for (int64_t o = output; o < output_end; o += kColumns) {
    const int columns = int(std::min<int64_t>(kColumns, output_end - o));
    float sums[kRows * kColumns];
    dots(inputs, size, rows, static_cast<const T*>(a.weight) + o * size, size, columns, size, step,
         sums);
    for (int c = 0; c < columns; ++c) {
      const float b = bias ? to_float(bias[o + c]) : 0.f;
      for (int r = 0; r < rows; ++r) put(y[r] + (o + c) * image, sums[r * kColumns + c] + b);
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
