// The emulated build of libhexad: CPU tensors go to the CUDA kernels, and there are no CPU kernels.
#include "check.h"
#include "cpu/table.h"

namespace hexad {

bool on_cuda(const hexad_tensor& t) {
  if (t.device_type == HEXAD_CPU) return true;
  fail(HEXAD_UNSUPPORTED, "device type %d: the emulated kernels are for CPU tensors",
       t.device_type);
}

const CpuTable& cpu() {
  fail(HEXAD_UNSUPPORTED, "the emulated build has CUDA kernels only");
}

}  // namespace hexad

extern "C" const char* hexad_isa(void) {
  return "emulated";
}
extern "C" const char* hexad_isa_available(void) {
  return "emulated";
}
extern "C" hexad_status hexad_set_isa(const char*) {
  return HEXAD_OK;
}
extern "C" const char* hexad_cuda_missing(void) {
  return "";
}
