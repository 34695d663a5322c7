// A table of contents: a line per op.
#include "call.h"

PYBIND11_MODULE(_C, m) {
  m.def("abi_version", &hexad_abi_version);
  m.def("isa", [] { return std::string(hexad_isa()); });
  m.def("isa_available", [] { return std::string(hexad_isa_available()); });
  m.def("set_isa", [](const std::string& name) { raise(hexad_set_isa(name.c_str())); });
  m.def("bind_openmp", [](const std::string& path) { raise(hexad_bind_openmp(path.c_str())); });
  m.def("on_thread_start", [](py::object call) { thread_start = call.release().ptr(); });
  m.def("openmp_path", [] { return std::string(hexad_openmp_path()); });
  m.def("cuda_missing", [] { return std::string(hexad_cuda_missing()); });

  m.def("append_kv", door(hexad_append_kv));
  m.def("attention", door(hexad_attention));
  m.def("attention_varlen", door(hexad_attention_varlen));
  m.def("coupling", door(hexad_coupling));
  m.def("decode", door(hexad_decode));
  m.def("gated_pixelcnn", door(hexad_gated_pixelcnn));
  m.def("invconv", door(hexad_invconv));
  m.def("linear", door(hexad_linear));
  m.def("maskedconv", door(hexad_maskedconv));
  m.def("merge_attention", door(hexad_merge_attention));
  m.def("norm", door(hexad_norm));
  m.def("randn", door(hexad_randn));
  m.def("roofline", door(hexad_roofline));
  m.def("rope", door(hexad_rope));
  m.def("sample", door(hexad_sample));
  m.def("step", door(hexad_step));
  m.def("vq", door(hexad_vq));
}
