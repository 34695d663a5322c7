// Gradients of coupling in one pass, from what it gave (y) or from what it was given (x):
//   forward  dx = g e^s,   dt = g,    ds = g (y - t) + l      with y - t = x e^s
//   inverse  dx = g e^-s,  dt = -dx,  ds = -g y - l           with y = (x - t) e^-s
// g and l are the gradients of y and of log_det.
#include "op/coupling_backward.h"

#include "cpu/couple.h"

namespace hexad {
namespace {

struct Grads {
  vf x, shift, scale;
};

template <int M, bool kInverse, bool kMasked>
HEXAD_INLINE Grads gradients(vf g, vf l, vf value, vf shift, vf raw, float clamp, bool from_input,
                             vi active) {
  const Slope s = slope_of<M, kInverse>(raw, clamp);
  Grads d;
  d.x = g * s.factor;
  d.shift = kInverse ? -d.x : g;
  if (kInverse) {
    const vf y = from_input ? (value - shift) * s.factor : value;
    d.scale = -fma(g, y, l) * s.slope;
  } else {
    const vf scaled = from_input ? value * s.factor : value - shift;
    d.scale = fma(g, scaled, l) * s.slope;
  }
  if (kMasked) {
    d.x = select(active, d.x, g);
    d.shift = select(active, d.shift, zero());
    d.scale = select(active, d.scale, zero());
  }
  return d;
}

template <class T>
struct Rows {
  const T *g, *value, *shift, *raw;
  T *dx, *dshift, *draw;

  Rows at(int64_t of_x, int64_t of_params) const {
    return {g ? g + of_x : g,
            value + of_x,
            shift + of_params,
            raw ? raw + of_params : raw,
            dx ? dx + of_x : dx,
            dshift ? dshift + of_params : dshift,
            draw ? draw + of_params : draw};
  }
};

template <class T, int M, bool kInverse, bool kMasked>
HEXAD_INLINE void run(const Rows<T>& r, int64_t n, float l, float clamp, bool from_input, vi active,
                      bool past) {
  past = past && streams(r.dx) && streams(r.dshift) && streams(r.draw);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, n - i);
    if (r.g) ask(r.g + i);
    ask(r.value + i), ask(r.shift + i);
    if (M != kAdditive) ask(r.raw + i);
    const auto get = [&](const T* p) __attribute__((always_inline)) {
      return !p ? zero() : count == kLanes ? load(p + i) : load_part(p + i, count);
    };
    const Grads d = gradients<M, kInverse, kMasked>(get(r.g), set1(l), get(r.value), get(r.shift),
                                                    get(r.raw), clamp, from_input, active);
    const auto give = [&](T* p, vf v) __attribute__((always_inline)) {
      if (!p) return;
      count == kLanes ? put(p + i, v, past) : store_part(p + i, v, count);
    };
    give(r.dx, d.x), give(r.dshift, d.shift), give(r.draw, d.scale);
  }
}

template <class T, int M, bool kInverse>
void piece(const CouplingBackwardArgs& a, const Cut& cut, int64_t b, int64_t p, bool past) {
  const int64_t params = a.checkerboard ? a.row : a.active;
  const auto in = [](const void* t, int64_t at) {
    return t ? static_cast<const T*>(t) + at : nullptr;
  };
  const auto out = [](void* t, int64_t at) { return t ? static_cast<T*>(t) + at : nullptr; };
  const Rows<T> row{in(a.grad_y, b * a.grad_y_stride), in(a.value, b * a.value_stride),
                    in(a.shift, b * a.shift_stride),   in(a.log_scale, b * a.scale_stride),
                    out(a.grad_x, b * a.row),          out(a.grad_shift, b * params),
                    out(a.grad_scale, b * params)};
  const float l = a.grad_log_det ? a.grad_log_det[b] : 0.f;
  if (a.checkerboard) {
    const vi odd = less_int(set1i(0), iota() & set1i(1)), even = odd ^ set1i(-1);
    const int64_t end = std::min((p + 1) * cut.size, a.row / a.width);
    for (int64_t r = p * cut.size; r < end; ++r) {
      const vi active = (r % a.height % 2 == 0) != a.flip ? odd : even;
      run<T, M, kInverse, true>(row.at(r * a.width, r * a.width), a.width, l, a.clamp, a.from_input,
                                active, past);
    }
    return;
  }
  if (row.dx) {
    const Range still = passive(a, cut, p);
    const int64_t n = still.end - still.begin;
    if (row.g)
      copy(row.dx + still.begin, row.g + still.begin, n, past);
    else
      std::fill_n(row.dx + still.begin, n, T{});
  }
  const int64_t from = p * cut.size, n = std::min(cut.size, a.active - from);
  run<T, M, kInverse, false>(row.at(a.active_begin + from, from), n, l, a.clamp, a.from_input,
                             set1i(0), past);
}

template <class T, int M, bool kInverse>
void rows(const CouplingBackwardArgs& a) {
  const bool past = beyond_cache(a.batch * a.row * int64_t(sizeof(T)));
  for_pieces(
      a,
      [&](const Cut& cut, int64_t b, int64_t p) {
        piece<T, M, kInverse>(a, cut, b, p, past);
        if (past) drain();
        return 0.0;
      },
      [](int64_t, double) {});
}

template <class T, int M>
void either_way(const CouplingBackwardArgs& a) {
  a.inverse ? rows<T, M, true>(a) : rows<T, M, false>(a);
}

template <class T>
void any_map(const CouplingBackwardArgs& a) {
  if (!a.log_scale) return either_way<T, kAdditive>(a);
  if (a.scale_map == kTanh) return either_way<T, kTanh>(a);
  if (a.scale_map == kSigmoid) return either_way<T, kSigmoid>(a);
  either_way<T, kExp>(a);
}

}  // namespace

namespace HEXAD_ISA {

void coupling_backward(const CouplingBackwardArgs& a) {
  a.bf16 ? any_map<bf16>(a) : any_map<float>(a);
}

}  // namespace HEXAD_ISA
}  // namespace hexad
