// Turns a function of the C ABI into a Python function: tensors become Array, the stream comes from
// the first CUDA tensor's framework, a bad status becomes an exception, the GIL is released.
#pragma once

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tensor.h"

template <class T>
using Given =
    std::conditional_t<std::is_same_v<T, const hexad_tensor*> || std::is_same_v<T, hexad_tensor*>,
                       Array, T>;

inline hexad_tensor* pass(Array& a) {
  return a.get();
}
template <class T>
inline T pass(T& value) {
  return value;
}
inline void find_stream(const Array& a, hexad_stream& stream) {
  if (!stream && a.on_cuda()) stream = a.stream();
}
template <class T>
inline void find_stream(const T&, hexad_stream&) {}

inline void raise(hexad_status status) {
  if (status == HEXAD_OK) return;
  const std::string text = hexad_last_error();
  if (status == HEXAD_INVALID) throw py::value_error(text);
  if (status == HEXAD_UNSUPPORTED) {
    PyErr_SetString(PyExc_NotImplementedError, text.c_str());
    throw py::error_already_set();
  }
  throw std::runtime_error(text);
}

// Called once in every thread that calls a kernel.
inline PyObject* thread_start = nullptr;

inline void start_thread() {
  static thread_local bool started = false;
  if (started || !thread_start) return;
  started = true;
  PyObject* result = PyObject_CallNoArgs(thread_start);
  if (!result) throw py::error_already_set();
  Py_DECREF(result);
}

// Arguments as the C function wants them. Numbers go through __index__ and __float__.
inline void take(PyObject* from, Array& to) {
  to = Array(from);
}
template <class T>
void take(PyObject* from, T& to) {
  if constexpr (std::is_floating_point_v<T>) {
    to = static_cast<T>(PyFloat_AsDouble(from));
  } else {
    const long long value = PyLong_AsLongLong(from);
    to = static_cast<T>(value);
    if (to != value)
      PyErr_Format(PyExc_ValueError, "%lld does not fit %d bits", value, int(8 * sizeof(T)));
  }
  if (PyErr_Occurred()) throw py::error_already_set();
}

// The Python function of a C function. It is a plain vectorcall: going through pybind11's own
// dispatch would double the price of a small call.
template <auto function>
struct Door;

template <class... A, hexad_status (*function)(A...)>
struct Door<function> {
  static constexpr size_t count = sizeof...(A) - 1;  // all parameters but the last, the stream
  static inline PyMethodDef methods[2] = {};

  template <size_t... I>
  static void run(PyObject* const* args, std::index_sequence<I...>) {
    std::tuple<Given<std::tuple_element_t<I, std::tuple<A...>>>...> given;
    (take(args[I], std::get<I>(given)), ...);
    start_thread();
    hexad_stream stream = nullptr;
    (find_stream(std::get<I>(given), stream), ...);
    hexad_status status;
    {
      py::gil_scoped_release release;
      status = function(pass(std::get<I>(given))..., stream);
    }
    raise(status);
  }

  static PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t given) {
    try {
      if (given != Py_ssize_t(count))
        throw py::type_error(std::string(methods[0].ml_name) + ": takes " + std::to_string(count) +
                             " arguments, got " + std::to_string(given));
      run(args, std::make_index_sequence<count>{});
      Py_RETURN_NONE;
    } catch (py::error_already_set& error) {
      error.restore();
    } catch (const py::builtin_exception& error) {
      error.set_error();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }
};

template <auto function>
void add_door(py::module_& m, const char* name) {
  using D = Door<function>;
  D::methods[0] = {name, reinterpret_cast<PyCFunction>(D::call), METH_FASTCALL,
                   "The function of this name in hexad.h, with the current stream."};
  if (PyModule_AddFunctions(m.ptr(), D::methods)) throw py::error_already_set();
}
