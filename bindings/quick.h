// An eager call in one step: an op's contract, outputs and kernel for plain CPU tensors, in a
// microsecond beside the kernel. What is anything else, or wrong, is left alone (the function
// returns None): the Python lane then does it, or says clearly what is wrong. quick/<op>.h repeats
// an op's contract as yes or no; tests/test_quick.py holds the two against each other.
#pragma once

#include <iterator>

#include "quick/append_kv.h"
#include "quick/attention.h"
#include "quick/coupling.h"
#include "quick/decode.h"
#include "quick/invconv.h"
#include "quick/linear.h"
#include "quick/linear_packed.h"
#include "quick/norm.h"
#include "quick/randn.h"
#include "quick/rope.h"
#include "quick/sample.h"
#include "quick/step.h"

namespace quick {

template <PyObject* (*op)(Values&), Py_ssize_t count>
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t given) {
  try {
    Values v(args, given, count);
    if (PyObject* result = v.ok ? op(v) : nullptr) return result;
  } catch (py::error_already_set& error) {
    error.restore();
  }
  PyErr_Clear();
  Py_RETURN_NONE;
}

inline void add(py::module_& m) {
  constexpr const char* text = "The eager call of this op on plain CPU tensors, or None.";
#define QUICK(op, count)                                                               \
  {                                                                                    \
    "quick_" #op, reinterpret_cast<PyCFunction>(&call<op, count>), METH_FASTCALL, text \
  }
  static PyMethodDef methods[] = {QUICK(append_kv, 11),
                                  QUICK(attention, 11),
                                  QUICK(coupling, 8),
                                  QUICK(decode, 12),
                                  QUICK(invconv, 3),
                                  QUICK(linear, 5),
                                  QUICK(linear_packed, 7),
                                  QUICK(norm, 9),
                                  QUICK(randn, 3),
                                  QUICK(rope, 5),
                                  QUICK(sample, 12),
                                  QUICK(step, 13),
                                  {nullptr, nullptr, 0, nullptr}};
#undef QUICK
  if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
  m.def("quick_guards", [](const py::tuple& given) {
    PyObject** const slots[] = {&guards.forced,   &guards.modes, &guards.functorch,
                                &guards.autocast, &guards.grad,  &guards.forward_mode};
    for (size_t i = 0; i < std::size(slots); ++i) *slots[i] = py::object(given[i]).release().ptr();
  });
}

}  // namespace quick
