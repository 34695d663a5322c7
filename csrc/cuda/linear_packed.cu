// linear of 1 to 16 rows with a weight of 8 or 4 bits in panels of 16 rows. The eight warps of a
// block share a panel's inputs in blocks of 256: a warp asks for its part of the panel, rounds its
// 256 inputs of x to bytes meanwhile, group by group, and multiplies bytes four at a time. Lane
// 4 i + j sums rows 4 j to 4 j + 3 over inputs 32 i to 32 i + 31.
#include "cuda/linear_finish.cuh"

namespace hexad {
namespace cuda {
namespace {

constexpr int kPanel = 16, kInputs = 256;

// 8 inputs of a row of x.
template <class T>
__device__ inline void load_eight(const T* x, int64_t count, bool aligned, float (&v)[8]) {
  if constexpr (kWide<T> == 8) {
    load_wide(x, count, aligned, v);
  } else {
    float half[2][4];
    load_wide(x, count, aligned, half[0]);
    load_wide(x + (count > 4 ? 4 : 0), count - 4, aligned, half[1]);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = half[i / 4][i % 4];
  }
}

// A warp's 256 inputs of a row in bytes, and the scale of each 32: x' = scale round(x / scale),
// scale = max |x| / 127 over kGroup inputs. With NaN or infinity among them the scale is NaN.
template <class T, int kGroup>
__device__ inline void to_bytes(const T* x, int64_t count, bool aligned, uint32_t* words,
                                float* scales) {
  const int lane = int(threadIdx.x) % 32;
  float v[8], top = 0.f;
  load_eight(x + (count > 8 * lane ? 8 * lane : 0), count - 8 * lane, aligned, v);
#pragma unroll
  for (int i = 0; i < 8; ++i) top = fmaxf(top, v[i] == v[i] ? fabsf(v[i]) : INFINITY);
  for (int n = 1; n < kGroup / 8; n *= 2) top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, n));
  const bool good = top < INFINITY;
  const float inverse = good && top > 1e-30f ? 127.f / top : 0.f;
  uint32_t word[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int q = good ? int(rintf(v[i] * inverse)) : 0;
    word[i / 4] |= uint32_t(q & 255) << i % 4 * 8;
  }
  words[2 * lane] = word[0], words[2 * lane + 1] = word[1];
  if (lane % 4 == 0) scales[lane / 4] = good ? top * (1.f / 127) : NAN;
}

// A lane's part of a panel, four rows of 32 inputs, asked for and then multiplied.
struct Int8 {
  static constexpr int kGroup = 64, kHeader = kPanel;
  uint32_t word[8][4];

  __device__ void load(const int32_t* panel, int64_t block, int64_t inputs, int i, int j) {
    const int64_t quad = block * (kInputs / 4) + 8 * i;
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      uint4 v = {0, 0, 0, 0};
      if (4 * (quad + q) < inputs)
        v = *reinterpret_cast<const uint4*>(panel + kHeader + (quad + q) * kPanel + 4 * j);
      word[q][0] = v.x, word[q][1] = v.y, word[q][2] = v.z, word[q][3] = v.w;
    }
  }
  __device__ void multiply(const uint32_t (&x)[8], float scale, float (&sum)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      int all = 0;
#pragma unroll
      for (int q = 0; q < 8; ++q) all = __dp4a(int(word[q][r] ^ 0x80808080u), int(x[q]), all);
      sum[r] = fmaf(float(all), scale, sum[r]);
    }
  }
};

struct Int4 {
  static constexpr int kGroup = 32, kHeader = 0;
  uint32_t word[5][4];  // scales and minima, then eight inputs each

  __device__ void load(const int32_t* panel, int64_t block, int64_t inputs, int i, int j) {
    const int64_t group = block * (kInputs / kGroup) + i;
#pragma unroll
    for (int m = 0; m < 5; ++m) {
      uint4 v = {0, 0, 0, 0};
      if (group * kGroup < inputs)
        v = *reinterpret_cast<const uint4*>(panel + (group * 5 + m) * kPanel + 4 * j);
      word[m][0] = v.x, word[m][1] = v.y, word[m][2] = v.z, word[m][3] = v.w;
    }
  }
  __device__ void multiply(const uint32_t (&x)[8], float scale, float (&sum)[4]) const {
    int bytes = 0;
#pragma unroll
    for (int q = 0; q < 8; ++q) bytes = __dp4a(0x01010101, int(x[q]), bytes);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      // About q = 8, the middle: sums about it cancel less than those about q = 0.
      int all = -8 * bytes;
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const uint32_t both = word[m + 1][r];
        all = __dp4a(int(both & 0x0f0f0f0fu), int(x[2 * m]), all);
        all = __dp4a(int(both >> 4 & 0x0f0f0f0fu), int(x[2 * m + 1]), all);
      }
      const float step = __uint_as_float(word[0][r] << 16);
      const float middle = fmaf(step, 8.f, __uint_as_float(word[0][r] & 0xffff0000u));
      sum[r] = fmaf(step, float(all) * scale, fmaf(middle, scale * float(bytes), sum[r]));
    }
  }
};

// A block has a panel of outputs, or of gates and the panel of their ups.
template <class T, class Form, int kRows, bool kGate>
__global__ void __launch_bounds__(kLinearThreads, kGate&& kRows > 1 ? 1 : 2)
    linear_packed_kernel(LinearPackedArgs p, bool aligned) {
  constexpr int kPanels = kGate ? 2 : 1;
  const LinearArgs& a = p.linear;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int i = lane / 4, j = lane % 4;
  const int64_t first = int64_t(blockIdx.y) * kRows;
  const int32_t* panel[kPanels];
#pragma unroll
  for (int n = 0; n < kPanels; ++n)
    panel[n] = static_cast<const int32_t*>(a.weight) +
               (blockIdx.x + n * (a.outputs / 2 / kPanel)) * a.weight_stride;
  HEXAD_SHARED(uint4, bytes, [kLinearWarps][kRows][kInputs / 16]);
  HEXAD_SHARED(float, scales, [kLinearWarps][kRows][8]);

  float sum[kPanels][kRows][4] = {};
  const int64_t parts = (a.inputs + kInputs - 1) / kInputs;
  for (int64_t part = warp; part < parts; part += kLinearWarps) {
    Form weight[kPanels];
#pragma unroll
    for (int n = 0; n < kPanels; ++n) weight[n].load(panel[n], part, a.inputs, i, j);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool there = first + r < a.rows;
      const int64_t at = there ? (first + r) * a.x_stride + part * kInputs : 0;
      to_bytes<T, Form::kGroup>(static_cast<const T*>(a.x) + at,
                                there ? a.inputs - part * kInputs : 0, aligned,
                                reinterpret_cast<uint32_t*>(bytes[warp][r]), scales[warp][r]);
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint4 low = bytes[warp][r][2 * i], high = bytes[warp][r][2 * i + 1];
      const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int n = 0; n < kPanels; ++n) weight[n].multiply(x, scales[warp][r][i], sum[n][r]);
    }
  }

  HEXAD_SHARED(float, sums, [kLinearWarps * kPanels * kPanel * kRows]);
#pragma unroll
  for (int n = 0; n < kPanels; ++n)
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        float all = sum[n][r][o];
        for (int m = 4; m < 32; m *= 2) all += __shfl_xor_sync(kFullWarp, all, m);
        if (Form::kHeader) all *= __uint_as_float(uint32_t(panel[n][4 * j + o]));
        if (i == 0) sums[((warp * kPanels + n) * kPanel + 4 * j + o) * kRows + r] = all;
      }
  finish_block<T, kPanels * kPanel, kRows>(a, blockIdx.x, first, sums);
}

template <class T, class Form, int kRows>
void run(const LinearPackedArgs& a, hexad_stream stream) {
  const int64_t stride[1] = {a.linear.x_stride};
  const dim3 grid(blocks("linear_packed", (width_of(a.linear) + kPanel - 1) / kPanel),
                  unsigned((a.linear.rows + kRows - 1) / kRows));
  launch("linear_packed",
         gated(a.linear) ? linear_packed_kernel<T, Form, kRows, true>
                         : linear_packed_kernel<T, Form, kRows, false>,
         grid, kLinearThreads, 0, stream, a, aligned_16(a.linear.x, stride, sizeof(T)));
}

template <class T, class Form>
void run(const LinearPackedArgs& a, hexad_stream stream) {
  a.linear.rows == 1 ? run<T, Form, 1>(a, stream) : run<T, Form, 4>(a, stream);
}

template <class T>
void run(const LinearPackedArgs& a, hexad_stream stream) {
  a.form == kPackedInt8 ? run<T, Int8>(a, stream) : run<T, Int4>(a, stream);
}

}  // namespace

void linear_packed(const LinearPackedArgs& args, hexad_stream stream) {
  const LinearArgs& a = args.linear;
  if (a.rows == 0 || a.outputs == 0) return;
  if (a.rows > kMostLinearRows || args.form < kPackedInt8)
    fail(HEXAD_UNSUPPORTED, "linear_packed: CUDA kernels are for int8 and int4 and up to %d rows",
         int(kMostLinearRows));
  if (reinterpret_cast<uintptr_t>(a.weight) % 16)
    fail(HEXAD_UNSUPPORTED,
         "panels: CUDA kernels want memory that starts at a multiple of 16 bytes");
  a.bf16 ? run<bf16>(args, stream) : a.f16 ? run<f16>(args, stream) : run<float>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
