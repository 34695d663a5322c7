// A table of contents: a line per op.
#include "call.h"
#include "lane.h"
#include "quick.h"

PYBIND11_MODULE(_C, m) {
  m.def("abi_version", &hexad_abi_version);
  m.def("isa", [] { return std::string(hexad_isa()); });
  m.def("isa_available", [] { return std::string(hexad_isa_available()); });
  m.def("set_isa", [](const std::string& name) { raise(hexad_set_isa(name.c_str())); });
  m.def("bind_openmp", [](const std::string& path) { raise(hexad_bind_openmp(path.c_str())); });
  m.def("on_thread_start", [](py::object call) { thread_start = call.release().ptr(); });
  m.def("openmp_path", [] { return std::string(hexad_openmp_path()); });
  m.def("cuda_missing", [] { return std::string(hexad_cuda_missing()); });
  add_lane(m);
  quick::add(m);

  add_door<hexad_append_kv>(m, "append_kv");
  add_door<hexad_attention>(m, "attention");
  add_door<hexad_attention_backward>(m, "attention_backward");
  add_door<hexad_attention_varlen>(m, "attention_varlen");
  add_door<hexad_coupling>(m, "coupling");
  add_door<hexad_coupling_backward>(m, "coupling_backward");
  add_door<hexad_decode>(m, "decode");
  add_door<hexad_gated_pixelcnn>(m, "gated_pixelcnn");
  add_door<hexad_invconv>(m, "invconv");
  add_door<hexad_linear>(m, "linear");
  add_door<hexad_linear_packed>(m, "linear_packed");
  add_door<hexad_maskedconv>(m, "maskedconv");
  add_door<hexad_merge_attention>(m, "merge_attention");
  add_door<hexad_norm>(m, "norm");
  add_door<hexad_randn>(m, "randn");
  add_door<hexad_roofline>(m, "roofline");
  add_door<hexad_rope>(m, "rope");
  add_door<hexad_sample>(m, "sample");
  add_door<hexad_step>(m, "step");
  add_door<hexad_vq>(m, "vq");
  add_door<hexad_winograd>(m, "winograd");
}
