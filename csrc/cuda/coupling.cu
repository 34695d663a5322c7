// Affine and additive coupling in one pass and one launch: a block per piece of a row. The
// log-determinant is summed in double, in an order that the row's size alone decides.
#include "cuda/couple.cuh"

namespace hexad {
namespace cuda {
namespace {

template <class T, int M, bool kCheckerboard>
__global__ void __launch_bounds__(kThreads) coupling_kernel(CouplingArgs a, Cut cut, bool packs) {
  constexpr int kPack = Pack<T>::kSize;
  const Piece piece(a, cut);
  const T* x = static_cast<const T*>(a.x) + piece.row * a.x_stride;
  T* y = static_cast<T*>(a.y) + piece.row * a.y_stride;
  const int64_t stride = kThreads * kPack, first = threadIdx.x * kPack;
  for (int64_t i = first; i < piece.passive_count; i += stride) {
    const int64_t at = piece.passive_begin + i, left = piece.passive_count - i;
    store_pack(y + at, load_pack(x + at, left, packs), left, packs);
  }

  x += a.active_begin + piece.begin;
  y += a.active_begin + piece.begin;
  const T* shift = static_cast<const T*>(a.shift) + piece.row * a.shift_stride + piece.begin;
  const T* raw = static_cast<const T*>(a.log_scale);
  if (M != kAdditive) raw += piece.row * a.scale_stride + piece.begin;
  double total = 0;
  for (int64_t i = first; i < piece.count; i += stride) {
    const int64_t left = piece.count - i;
    const Pack<T> v = load_pack(x + i, left, packs), t = load_pack(shift + i, left, packs);
    Pack<T> r{}, moved;
    if constexpr (M != kAdditive) r = load_pack(raw + i, left, packs);
    Parity parity(a, kCheckerboard ? piece.begin + i : 0);
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const Scale s = scale_of<M>(to_float(r.v[e]), a.clamp, a.inverse);
      const float value = to_float(v.v[e]), by = to_float(t.v[e]);
      const bool active = !kCheckerboard || parity.active();
      put(&moved.v[e], a.inverse ? (value - by) * s.factor : fmaf(value, s.factor, by));
      if (!active) moved.v[e] = v.v[e];
      if (M != kAdditive && active && e < left) total += s.s;
      if constexpr (kCheckerboard) parity.next();
    }
    store_pack(y + i, moved, left, packs);
  }
  if constexpr (M == kAdditive) {
    if (piece.index == 0 && threadIdx.x == 0) a.log_det[piece.row] = 0.f;
  } else if (row_sum<kThreads>(total, a.partials + piece.row * cut.pieces, a.counters + piece.row,
                               piece.index, cut.pieces) &&
             threadIdx.x == 0) {
    a.log_det[piece.row] = float(a.inverse ? -total : total);
  }
}

template <class T>
void start(const CouplingArgs& a, hexad_stream stream) {
  const Cut cut(a);
  const bool packs = cut.in_packs(a) && in_packs(a.x, a.x_stride, sizeof(T)) &&
                     in_packs(a.y, a.y_stride, sizeof(T)) &&
                     in_packs(a.shift, a.shift_stride, sizeof(T)) &&
                     in_packs(a.log_scale, a.scale_stride, sizeof(T));
  with_map(a, !a.log_scale, [&](auto map) {
    constexpr int M = decltype(map)::value;
    launch("coupling", a.checkerboard ? coupling_kernel<T, M, true> : coupling_kernel<T, M, false>,
           blocks("coupling", a.batch * cut.pieces), kThreads, 0, stream, a, cut, packs);
  });
}

}  // namespace

void coupling(const CouplingArgs& args, hexad_stream stream) {
  if (args.batch == 0) return;
  args.bf16 ? start<bf16>(args, stream) : start<float>(args, stream);
}

}  // namespace cuda
}  // namespace hexad
