// Gradients of coupling in one pass, cut as the forward pass is; nothing is summed.
#include "cuda/couple.cuh"
#include "op/coupling_backward.h"

namespace hexad {
namespace cuda {
namespace {

template <class T, int M, bool kCheckerboard>
__global__ void __launch_bounds__(kThreads)
    coupling_backward_kernel(CouplingBackwardArgs a, Cut cut, bool packs) {
  constexpr int kPack = Pack<T>::kSize;
  const Piece piece(a, cut);
  const T* g = a.grad_y ? static_cast<const T*>(a.grad_y) + piece.row * a.grad_y_stride : nullptr;
  T* dx = a.grad_x ? static_cast<T*>(a.grad_x) + piece.row * a.row : nullptr;
  const auto read = [&](const T* p, int64_t i, int64_t left) {
    return p ? load_pack(p + i, left, packs) : Pack<T>{};
  };
  const auto write = [&](T* p, int64_t i, const Pack<T>& values, int64_t left) {
    if (p) store_pack(p + i, values, left, packs);
  };
  const int64_t stride = kThreads * kPack, first = threadIdx.x * kPack;
  for (int64_t i = first; i < piece.passive_count; i += stride) {
    const int64_t at = piece.passive_begin + i, left = piece.passive_count - i;
    write(dx, at, read(g, at, left), left);
  }

  const int64_t x_at = a.active_begin + piece.begin, of_params = piece.row * a.active + piece.begin;
  const T* value = static_cast<const T*>(a.value) + piece.row * a.value_stride + x_at;
  const T* shift = static_cast<const T*>(a.shift) + piece.row * a.shift_stride + piece.begin;
  const T* raw = static_cast<const T*>(a.log_scale);
  if (M != kAdditive) raw += piece.row * a.scale_stride + piece.begin;
  T* dshift = a.grad_shift ? static_cast<T*>(a.grad_shift) + of_params : nullptr;
  T* draw = a.grad_scale ? static_cast<T*>(a.grad_scale) + of_params : nullptr;
  if (g) g += x_at;
  if (dx) dx += x_at;
  const float l = a.grad_log_det ? a.grad_log_det[piece.row] : 0.f;
  for (int64_t i = first; i < piece.count; i += stride) {
    const int64_t left = piece.count - i;
    const Pack<T> gs = read(g, i, left), vs = read(value, i, left), ts = read(shift, i, left);
    Pack<T> rs{}, to_x, to_shift, to_raw;
    if constexpr (M != kAdditive) rs = read(raw, i, left);
    Parity parity(a, kCheckerboard ? piece.begin + i : 0);
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const Scale s = scale_of<M>(to_float(rs.v[e]), a.clamp, a.inverse);
      const float ge = to_float(gs.v[e]), v = to_float(vs.v[e]), t = to_float(ts.v[e]);
      const bool active = !kCheckerboard || parity.active();
      const float d = ge * s.factor;
      float of_s;
      if (a.inverse)
        of_s = -fmaf(ge, a.from_input ? (v - t) * s.factor : v, l);
      else
        of_s = fmaf(ge, a.from_input ? v * s.factor : v - t, l);
      put(&to_x.v[e], active ? d : ge);
      put(&to_shift.v[e], active ? (a.inverse ? -d : ge) : 0.f);
      put(&to_raw.v[e], active ? of_s * s.slope : 0.f);
      if constexpr (kCheckerboard) parity.next();
    }
    write(dx, i, to_x, left);
    write(dshift, i, to_shift, left);
    if constexpr (M != kAdditive) write(draw, i, to_raw, left);
  }
}

template <class T>
void start(const CouplingBackwardArgs& a, hexad_stream stream) {
  const Cut cut(a);
  const int64_t size = sizeof(T);
  const bool packs =
      cut.in_packs(a) && in_packs(a.grad_y, a.grad_y_stride, size) &&
      in_packs(a.value, a.value_stride, size) && in_packs(a.shift, a.shift_stride, size) &&
      in_packs(a.log_scale, a.scale_stride, size) && in_packs(a.grad_x, a.row, size) &&
      in_packs(a.grad_shift, a.active, size) && in_packs(a.grad_scale, a.active, size);
  with_map(a, !a.log_scale, [&](auto map) {
    constexpr int M = decltype(map)::value;
    launch("coupling_backward",
           a.checkerboard ? coupling_backward_kernel<T, M, true>
                          : coupling_backward_kernel<T, M, false>,
           blocks("coupling_backward", a.batch * cut.pieces), kThreads, 0, stream, a, cut, packs);
  });
}

}  // namespace

void coupling_backward(const CouplingBackwardArgs& args, hexad_stream stream) {
  if (args.batch == 0) return;
  args.bf16 ? start<bf16>(args, stream) : start<float>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
