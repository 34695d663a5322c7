// What a quick call (quick.h) is made of: its arguments as plain CPU tensors and numbers, and
// outputs from torch's own allocator.
#pragma once

#include <cmath>
#include <initializer_list>

#include "../call.h"
#include "../lane.h"

namespace quick {

// What must hold before an argument is looked at: no forced backend, dispatch mode, functorch
// level, autocast or forward-mode level.
struct Guards {
  PyObject *forced, *modes, *functorch, *autocast, *grad, *forward_mode;
};
inline Guards guards = {};

// How the elements of a tensor must lie: packed; each [i] packed; the last dimension packed;
// anyhow.
enum class Layout { packed, rows, unit, any };

class Values {
 public:
  Values(PyObject* const* args, Py_ssize_t count, Py_ssize_t wanted) : args_(args) {
    PyObject* forced = nullptr;
    if (count != wanted || PyContextVar_Get(guards.forced, nullptr, &forced)) return;
    ok = forced == Py_None;
    Py_XDECREF(forced);
    if (answer(guards.modes) || answer(guards.functorch) || answer(guards.autocast)) ok = false;
    static PyObject* const level_name = PyUnicode_InternFromString("_current_level");
    PyObject* level = PyDict_GetItem(guards.forward_mode, level_name);
    if (!level || !PyLong_Check(level) || PyLong_AsLong(level) >= 0) ok = false;
    grad_ = answer(guards.grad);
  }

  // Whether all is as it was asked for so far; nothing else is of use once it is not.
  bool ok = false;

  bool want(bool holds) { return ok &= holds; }

  // Argument i: null for None.
  hexad_tensor* tensor(int i, Layout layout = Layout::packed) {
    if (!ok || args_[i] == Py_None) return nullptr;
    hexad_tensor* t = &tensors_[i];
    if (!want(describe(args_[i], t) && t->device_type == HEXAD_CPU && t->dtype_lanes == 1 &&
              t->ndim <= kDims))
      return nullptr;
    bool all_packed = true;
    int64_t packed = 1;
    for (int d = t->ndim - 1; d >= 0; packed *= t->shape[d--]) {
      const bool in_place = !t->strides || t->shape[d] == 1 || t->strides[d] == packed;
      all_packed &= in_place;
      if (layout == Layout::packed || (layout == Layout::rows && d > 0) ||
          (layout == Layout::unit && d == t->ndim - 1))
        want(in_place);
    }
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    if (!all_packed || packed <= 1) want(!has_attribute(args_[i], is_neg, true));
    if (grad_) want(!has_attribute(args_[i], requires_grad, false));
    return t;
  }

  // An argument that must be there, of `ndim` dimensions, or at least `at_least`.
  hexad_tensor* given(int i, int ndim, Layout layout = Layout::packed) {
    hexad_tensor* t = tensor(i, layout);
    want(t && t->ndim == ndim);
    return t;
  }
  hexad_tensor* given_from(int i, int at_least, Layout layout = Layout::packed) {
    hexad_tensor* t = tensor(i, layout);
    want(t && t->ndim >= at_least);
    return t;
  }

  // An optional argument in `other`'s dtype and of these sizes.
  hexad_tensor* like(int i, const hexad_tensor* other, std::initializer_list<int64_t> sizes,
                     Layout layout = Layout::packed) {
    hexad_tensor* t = tensor(i, layout);
    if (!t || !same_dtype(t, other) || !want(t->ndim == int(sizes.size()))) return t;
    int d = 0;
    for (int64_t size : sizes) want(t->shape[d++] == size);
    return t;
  }

  bool same_dtype(const hexad_tensor* t, const hexad_tensor* other) {
    return want(t->dtype_code == other->dtype_code && t->dtype_bits == other->dtype_bits);
  }
  bool dtype(const hexad_tensor* t, int code, int bits) {
    return want(t->dtype_code == code && t->dtype_bits == bits);
  }
  bool float32(const hexad_tensor* t) { return dtype(t, 2, 32); }
  bool int32(const hexad_tensor* t) { return dtype(t, 0, 32); }

  int64_t integer(int i) {
    if (!ok || !want(PyLong_Check(args_[i]))) return 0;
    int overflow = 0;
    const int64_t value = PyLong_AsLongLongAndOverflow(args_[i], &overflow);
    want(!overflow);
    return value;
  }
  // An integer that the C function takes with 32 bits.
  int32_t code(int i) {
    const int64_t value = integer(i);
    want(value == int32_t(value));
    return int32_t(value);
  }
  // A tuple of at most `most` sizes; how many they are.
  int sizes(int i, int64_t* out, Py_ssize_t most) {
    if (!ok || !want(PyTuple_CheckExact(args_[i]) && PyTuple_GET_SIZE(args_[i]) <= most)) return 0;
    const int count = int(PyTuple_GET_SIZE(args_[i]));
    for (int d = 0; d < count && ok; ++d) {
      int overflow = 0;
      PyObject* size = PyTuple_GET_ITEM(args_[i], d);
      if (want(PyLong_Check(size))) out[d] = PyLong_AsLongLongAndOverflow(size, &overflow);
      want(!overflow && out[d] >= 0);
    }
    return count;
  }
  bool none(int i) const { return args_[i] == Py_None; }
  double real(int i, double if_none = 0) {
    if (!ok || none(i)) return if_none;
    return want(PyFloat_CheckExact(args_[i])) ? PyFloat_AS_DOUBLE(args_[i]) : 0;
  }

  static constexpr int kDims = 8;

 private:
  static bool answer(PyObject* question) {
    PyObject* said = PyObject_CallNoArgs(question);
    const bool no = said == Py_None || said == Py_False ||
                    (said && PyLong_CheckExact(said) && PyLong_AsLong(said) == 0);
    Py_XDECREF(said);
    return !no;
  }

  PyObject* const* args_;
  bool grad_ = true;
  hexad_tensor tensors_[12];
};

// A contiguous tensor that torch allocates; small enough that memory.py has no part in it.
class Output {
 public:
  Output() = default;
  Output(Values& v, const hexad_tensor* like, int ndim, const int64_t* shape) {
    make(v, like->dtype_code, like->dtype_bits, ndim, shape);
  }
  Output(Values& v, int code, int bits, int ndim, const int64_t* shape) {
    make(v, code, bits, ndim, shape);
  }
  Output(const Output&) = delete;
  ~Output() {
    if (made_) made_->deleter(made_);
  }
  hexad_tensor* get() { return made_ ? &made_->tensor : nullptr; }
  PyObject* release() {
    void* object = nullptr;
    const int failed = exchange_of(plain_types[0])->to_object(made_, &object);
    made_ = nullptr;
    return failed ? nullptr : static_cast<PyObject*>(object);
  }

  void make(Values& v, int code, int bits, int ndim, const int64_t* shape) {
    if (!v.ok) return;
    int64_t bytes = bits / 8;
    for (int d = 0; d < ndim; ++d)
      if (!v.want(!__builtin_mul_overflow(bytes, shape[d], &bytes))) return;
    if (!v.want(bytes < kLarge)) return;
    hexad_tensor want{};
    want.device_type = HEXAD_CPU;
    want.dtype_code = uint8_t(code), want.dtype_bits = uint8_t(bits), want.dtype_lanes = 1;
    want.ndim = ndim, want.shape = const_cast<int64_t*>(shape);
    const auto silent = [](void*, const char*, const char*) {};
    v.want(!exchange_of(plain_types[0])->allocate(&want, &made_, nullptr, silent));
  }

 private:
  static constexpr int64_t kLarge = 32 << 20;  // memory.LARGE
  DLPackVersioned* made_ = nullptr;
};

// float32 statistics.
class Statistics : public Output {
 public:
  Statistics(Values& v, std::initializer_list<int64_t> shape) {
    make(v, 2, 32, int(shape.size()), shape.begin());
  }
};

// Whether the kernel did it.
template <class Kernel>
bool run(Values& v, Kernel kernel) {
  if (!v.ok) return false;
  start_thread();
  py::gil_scoped_release release;
  return kernel() == HEXAD_OK;
}

inline PyObject* pair(Output& a, Output& b) {
  PyObject* first = a.release();
  PyObject* second = b.release();
  PyObject* both = first && second ? PyTuple_Pack(2, first, second) : nullptr;
  Py_XDECREF(first);
  Py_XDECREF(second);
  return both;
}

}  // namespace quick
