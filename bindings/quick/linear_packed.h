// (x, panels, bias, activation, residual, form, rows)
#pragma once

#include "linear.h"

namespace quick {

// int32, (rows, words); none without words. A small one lies on the stack.
class Workspace : public Output {
 public:
  Workspace(Values& v, int64_t rows, int64_t words) : shape_{rows, words}, strides_{words, 1} {
    if (!v.ok || !words) return;
    if (rows > kRoom / words) {
      make(v, 0, 32, 2, shape_);
      return;
    }
    small_.data = room_;
    small_.device_type = HEXAD_CPU;
    small_.dtype_bits = 32, small_.dtype_lanes = 1;
    small_.ndim = 2, small_.shape = shape_, small_.strides = strides_;
  }
  hexad_tensor* get() { return small_.data ? &small_ : Output::get(); }

 private:
  static constexpr int64_t kRoom = 4096;
  int64_t shape_[2], strides_[2];
  hexad_tensor small_{};
  alignas(64) int32_t room_[kRoom];
};

inline PyObject* linear_packed(Values& v) {
  hexad_tensor *x = v.given_from(0, 1), *panels = v.given(1, 2);
  const int32_t activation = v.code(3), form = v.code(5);
  const int64_t rows = v.integer(6);
  if (!v.want(x && panels && rows >= 0 && form >= 0 && form <= 3)) return nullptr;
  const int64_t inputs = x->shape[x->ndim - 1];
  hexad_tensor* bias = v.like(2, x, {rows});
  Product product(v, x, rows, activation, 4);
  int64_t count = 1;
  for (int d = 0; d + 1 < x->ndim; ++d) count *= x->shape[d];
  const int64_t group = form == 2 ? 64 : 32;
  const int64_t words = form < 2 ? 0 : (inputs + group - 1) / group * (3 + group / 2);
  Output y(v, x, x->ndim, product.shape);
  Workspace workspace(v, count, words);
  const bool done = run(v, [&] {
    return hexad_linear_packed(x, panels, bias, product.residual, y.get(), workspace.get(),
                               activation, form, nullptr);
  });
  return done ? y.release() : nullptr;
}

}  // namespace quick
