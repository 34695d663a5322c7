// Layer, RMS and group normalisation, a block per row. A row that fits stays in shared memory, so
// that the two passes of its statistics and the last one read it from there.
#include "cuda/packs.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int64_t kStaged = 96 << 10;  // bytes of a row at most: two blocks of an SM

// What features do after normalisation. Missing pointers do nothing.
template <class T>
struct Affine {
  const T *weight, *bias, *scale, *shift;

  __device__ Affine(const NormArgs& a, int64_t batch, int64_t feature)
      : weight(static_cast<const T*>(a.weight)),
        bias(static_cast<const T*>(a.bias)),
        scale(static_cast<const T*>(a.scale)),
        shift(static_cast<const T*>(a.shift)) {
    if (weight) weight += feature;
    if (bias) bias += feature;
    if (scale) scale += batch * a.scale_stride + feature;
    if (shift) shift += batch * a.shift_stride + feature;
  }
};

struct Feature {
  float weight, bias, scale, shift;

  __device__ float of(float x) const {
    const float y = x * weight + bias;
    return fmaf(y, scale, y) + shift;
  }
};

// A feature for each element of a pack.
template <class T>
struct Features {
  Pack<T> packs[4];
  bool there[4];

  __device__ Features(const Affine<T>& from, int64_t i, int64_t left, bool aligned) {
    const T* all[] = {from.weight, from.bias, from.scale, from.shift};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      there[n] = all[n];
      if (there[n]) packs[n] = load_pack(all[n] + i, left, aligned);
    }
  }
  __device__ Feature operator[](int e) const {
    return {there[0] ? to_float(packs[0].v[e]) : 1.f, there[1] ? to_float(packs[1].v[e]) : 0.f,
            there[2] ? to_float(packs[2].v[e]) : 0.f, there[3] ? to_float(packs[3].v[e]) : 0.f};
  }
};

template <class T>
__device__ inline Feature feature(const Affine<T>& from, int64_t i) {
  return {from.weight ? to_float(from.weight[i]) : 1.f, from.bias ? to_float(from.bias[i]) : 0.f,
          from.scale ? to_float(from.scale[i]) : 0.f, from.shift ? to_float(from.shift[i]) : 0.f};
}

// kSpatial: elements in a row share a feature, `spatial` of them at a time.
template <class T, int kThreads, bool kSpatial>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(NormArgs a, bool packs, bool vectors, bool staged) {
  constexpr int kPack = Pack<T>::kSize, kStep = kThreads * kPack;
  HEXAD_DYNAMIC_SHARED(T, kept);
  const int64_t row = blockIdx.x, first = threadIdx.x * kPack;
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  T* y = static_cast<T*>(a.y) + row * a.y_stride;
  // A thread reads back only what it kept itself: no barrier is needed.
  const auto again = [&](int64_t i) {
    return staged ? load_pack(kept + i, kPack, true) : load_pack(x + i, a.row - i, packs);
  };

  // Sums of a pack in float, of packs in double.
  double total = 0;
  for (int64_t i = first; i < a.row; i += kStep) {
    const int64_t left = a.row - i;
    const Pack<T> v = load_pack(x + i, left, packs);
    if (staged) store_pack(kept + i, v, kPack, true);
    float sum = 0;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const float value = e < left ? to_float(v.v[e]) : 0.f;
      sum = a.rms ? fmaf(value, value, sum) : sum + value;
    }
    total += sum;
  }
  total = block_sum<kThreads>(total) / double(a.row);
  float mean = 0, low = 0;
  double variance = total;
  if (!a.rms) {
    // The second pass also finds what rounding left out of the mean: rows far from zero need it.
    mean = float(total);
    double one = 0, two = 0;
    for (int64_t i = first; i < a.row; i += kStep) {
      const Pack<T> v = again(i);
      float sum = 0, squares = 0;
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float value = i + e < a.row ? to_float(v.v[e]) - mean : 0.f;
        sum += value;
        squares = fmaf(value, value, squares);
      }
      one += sum;
      two += squares;
    }
    const double off = block_sum<kThreads>(one) / double(a.row);
    variance = block_sum<kThreads>(two) / double(a.row) - off * off;
    if (variance < 0) variance = 0;
    low = float(off);
  }
  const float inverse = float(1 / sqrt(variance + a.eps));

  const int64_t per_row = a.row / a.spatial;
  const Affine<T> affine(a, row / a.rows_per_batch, row * per_row % a.features);
  const auto finished = [&](T x, const Feature& f) {
    const float value = f.of(((to_float(x) - mean) - low) * inverse);
    return a.silu ? value / (1.f + expf(-value)) : value;
  };
  for (int64_t i = first; i < a.row; i += kStep) {
    const int64_t left = a.row - i;
    const Pack<T> v = again(i);
    Pack<T> made;
    if constexpr (kSpatial) {
      int64_t at = i / a.spatial, within = i - at * a.spatial;
      Feature f = feature(affine, at);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        put(&made.v[e], finished(v.v[e], f));
        if (++within < a.spatial) continue;
        within = 0;
        if (++at < per_row) f = feature(affine, at);
      }
    } else {
      const Features<T> features(affine, i, left, vectors);
#pragma unroll
      for (int e = 0; e < kPack; ++e) put(&made.v[e], finished(v.v[e], features[e]));
    }
    store_pack(y + i, made, left, packs);
  }
}

template <class T>
void start(const NormArgs& a, hexad_stream stream) {
  const int64_t size = sizeof(T), bytes = (a.row * size + 15) / 16 * 16;
  const bool packs = in_packs(a.x, a.x_stride, size) && in_packs(a.y, a.y_stride, size);
  const bool staged = bytes <= kStaged, large = bytes > 16 << 10;
  // A group's features begin where the row's number says, a layer's always at 0.
  const bool vectors = (a.row == a.features || a.row * size % 16 == 0) &&
                       in_packs(a.weight, 0, size) && in_packs(a.bias, 0, size) &&
                       in_packs(a.scale, a.scale_stride, size) &&
                       in_packs(a.shift, a.shift_stride, size);
  auto* const kernel = a.spatial > 1
                           ? (large ? norm_kernel<T, 512, true> : norm_kernel<T, 128, true>)
                           : (large ? norm_kernel<T, 512, false> : norm_kernel<T, 128, false>);
  launch("norm", kernel, blocks("norm", a.rows), large ? 512 : 128, staged ? size_t(bytes) : 0,
         stream, a, packs, vectors, staged);
}

}  // namespace

void norm(const NormArgs& args, hexad_stream stream) {
  args.bf16 ? start<bf16>(args, stream) : start<float>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
