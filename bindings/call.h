// Turns a function of the C ABI into a Python function: tensors become Array, the stream comes from
// the first CUDA tensor's framework, a bad status becomes an exception, the GIL is released.
#pragma once

#include <string>
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

template <class... A, size_t... I>
auto door(hexad_status (*function)(A...), std::index_sequence<I...>) {
  using All = std::tuple<A...>;
  return [function](Given<std::tuple_element_t<I, All>>... given) {
    start_thread();
    hexad_stream stream = nullptr;
    (find_stream(given, stream), ...);
    hexad_status status;
    {
      py::gil_scoped_release release;
      status = function(pass(given)..., stream);
    }
    raise(status);
  };
}

// All parameters but the last, the stream.
template <class... A>
auto door(hexad_status (*function)(A...)) {
  return door(function, std::make_index_sequence<sizeof...(A) - 1>{});
}
