// The eager lane's questions about tensors, each answered in one C call of some 50 ns a tensor.
// "No" is always safe: the caller then asks again in Python, slowly and with a clear error.
#pragma once

#include "tensor.h"

// torch.Tensor and torch.nn.Parameter: the types that have no behaviour of their own.
inline PyTypeObject* plain_types[2] = {};

inline bool is_plain(PyObject* object) {
  return Py_TYPE(object) == plain_types[0] || Py_TYPE(object) == plain_types[1];
}

// Describes a plain tensor; false if it has no such description (a functorch wrapper, a meta
// tensor).
inline bool describe(PyObject* object, hexad_tensor* out) {
  const DLPackExchange* api = is_plain(object) ? exchange_of(Py_TYPE(object)) : nullptr;
  if (!api) return false;
  if (!api->borrow(object, out)) return true;
  PyErr_Clear();
  return false;
}

inline bool has_attribute(PyObject* object, PyObject* name, bool call) {
  PyObject* answer =
      call ? PyObject_CallMethodNoArgs(object, name) : PyObject_GetAttr(object, name);
  const bool yes = answer != Py_False;  // an error counts as yes
  Py_XDECREF(answer);
  if (!answer) PyErr_Clear();
  return yes;
}

// A view that negates lazily has strides of its own, or a single element.
inline bool may_negate(const hexad_tensor& t) {
  int64_t packed = 1;
  for (int i = t.ndim - 1; i >= 0; packed *= t.shape[i--])
    if (t.strides && t.shape[i] != 1 && t.strides[i] != packed) return true;
  return packed <= 1;
}

// Whether every tensor among `values` (a tuple or list, searched through) is plain, on the CPU, of
// an element type whose bit `1 << (code * 8 + log2(bytes))` is set in `accepted`, and, if `grad`,
// asks for no gradient.
inline bool all_plain(PyObject* values, uint64_t accepted, bool grad) {
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  PyObject** items = PySequence_Fast_ITEMS(values);
  for (Py_ssize_t i = 0, n = PySequence_Fast_GET_SIZE(values); i < n; ++i) {
    PyObject* item = items[i];
    if (item == Py_None || PyLong_Check(item) || PyFloat_CheckExact(item)) continue;
    if (PyTuple_CheckExact(item) || PyList_CheckExact(item)) {
      if (!all_plain(item, accepted, grad)) return false;
      continue;
    }
    hexad_tensor t;
    if (!describe(item, &t) || t.device_type != HEXAD_CPU || t.dtype_lanes != 1) return false;
    const int bit = t.dtype_code * 8 + __builtin_ctz(t.dtype_bits / 8 | 128);
    if (bit > 63 || !(accepted >> bit & 1)) return false;
    if (grad && has_attribute(item, requires_grad, false)) return false;
    if (may_negate(t) && has_attribute(item, is_neg, true)) return false;
  }
  return true;
}

inline PyObject* plain_on_cpu(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyTuple_CheckExact(args[0])) {
    PyErr_SetString(PyExc_TypeError,
                    "plain_on_cpu: wants a tuple, accepted bits, whether grads count");
    return nullptr;
  }
  const uint64_t accepted = PyLong_AsUnsignedLongLongMask(args[1]);
  return PyBool_FromLong(all_plain(args[0], accepted, args[2] == Py_True));
}

// Whether `value` is a tensor of the sizes `want`, with `other`'s dtype and device.
inline PyObject* matches(PyObject*, PyObject* const* args, Py_ssize_t count) {
  hexad_tensor value, other;
  if (count != 3 || !PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "matches: wants a tensor, a tuple, a tensor");
    return nullptr;
  }
  bool yes = describe(args[0], &value) && describe(args[2], &other) &&
             value.dtype_code == other.dtype_code && value.dtype_bits == other.dtype_bits &&
             value.device_type == other.device_type && value.device_id == other.device_id &&
             PyTuple_GET_SIZE(args[1]) == value.ndim;
  for (int i = 0; yes && i < value.ndim; ++i) {
    PyObject* size = PyTuple_GET_ITEM(args[1], i);
    yes = PyLong_Check(size) && PyLong_AsLongLong(size) == value.shape[i];
  }
  return PyBool_FromLong(yes);
}

inline void add_lane(py::module_& m) {
  static PyMethodDef methods[] = {
      {"plain_on_cpu", reinterpret_cast<PyCFunction>(plain_on_cpu), METH_FASTCALL,
       "plain_on_cpu(args, accepted, grad): whether all tensors are plain CPU ones of those types"},
      {"matches", reinterpret_cast<PyCFunction>(matches), METH_FASTCALL,
       "matches(value, sizes, other): whether value has those sizes and other's dtype and device"},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
  m.def("plain_types", [](py::type tensor, py::type parameter) {
    plain_types[0] = reinterpret_cast<PyTypeObject*>(tensor.release().ptr());
    plain_types[1] = reinterpret_cast<PyTypeObject*>(parameter.release().ptr());
  });
}
