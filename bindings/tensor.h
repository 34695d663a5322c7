// How a Python array becomes a hexad_tensor: through the C exchange API that DLPack 1.3 puts on the
// array's type (torch >= 2.10: no torch header, about 50 ns), else through __dlpack__().
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "hexad/hexad.h"

namespace py = pybind11;

// The parts of DLPack's ABI used here, laid out as its specification says.
struct DLPackManagedTensor {
  hexad_tensor tensor;
  void* manager_ctx;
  void (*deleter)(DLPackManagedTensor*);
};

struct DLPackVersioned {
  uint32_t major, minor;
  void* manager_ctx;
  void (*deleter)(DLPackVersioned*);
  uint64_t flags;
  hexad_tensor tensor;
};

struct DLPackExchange {
  uint32_t major, minor;
  DLPackExchange* older;
  int (*allocate)(hexad_tensor* like, DLPackVersioned** out, void* context,
                  void (*complain)(void* context, const char* kind, const char* text));
  void* from_object;
  int (*to_object)(DLPackVersioned* stolen, void** out);
  int (*borrow)(void* object, hexad_tensor* out);
  int (*stream)(int32_t device_type, int32_t device_id, void** out);
};

// The last few types seen (Tensor and Parameter take turns); a type in the list stays alive.
inline const DLPackExchange* exchange_of(PyTypeObject* type) {
  static struct {
    PyTypeObject* type;
    const DLPackExchange* api;
  } known[4];
  static unsigned oldest = 0;
  for (const auto& k : known)
    if (k.type == type) return k.api;
  const DLPackExchange* api = nullptr;
  PyObject* capsule =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (capsule && PyCapsule_CheckExact(capsule)) {
    api = static_cast<const DLPackExchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    while (api && api->major != 1) api = api->older;
    if (api && !api->borrow) api = nullptr;
  }
  Py_XDECREF(capsule);
  PyErr_Clear();
  auto& slot = known[oldest++ % 4];
  Py_INCREF(type);
  Py_XDECREF(slot.type);
  slot = {type, api};
  return api;
}

// An argument of a kernel call: borrowed for the length of the call.
class Array {
 public:
  Array() = default;
  explicit Array(py::handle object) { acquire(object); }

  hexad_tensor* get() { return present_ ? &tensor_ : nullptr; }
  bool on_cuda() const { return present_ && tensor_.device_type == HEXAD_CUDA_DEVICE; }
  hexad_stream stream() const {
    void* s = nullptr;
    if (api_ && api_->stream(tensor_.device_type, tensor_.device_id, &s))
      throw py::error_already_set();
    return s;
  }

 private:
  void acquire(py::handle object) {
    if (object.is_none()) return;
    api_ = exchange_of(Py_TYPE(object.ptr()));
    if (api_) {
      if (api_->borrow(object.ptr(), &tensor_)) throw py::error_already_set();
    } else {
      if (!py::hasattr(object, "__dlpack__"))
        throw py::type_error(std::string("wants an array with __dlpack__, got ") +
                             Py_TYPE(object.ptr())->tp_name);
      capsule_ = object.attr("__dlpack__")();
      auto* managed =
          static_cast<DLPackManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
      if (!managed) throw py::error_already_set();
      tensor_ = managed->tensor;
    }
    present_ = true;
  }

  hexad_tensor tensor_{};
  const DLPackExchange* api_ = nullptr;
  py::object capsule_;
  bool present_ = false;
};
