// Which kernels serve a tensor. The emulated build replaces this file.
#include "check.h"

namespace hexad {

bool on_cuda(const hexad_tensor& t) {
  if (t.device_type == HEXAD_CPU) return false;
  if (t.device_type == HEXAD_CUDA_DEVICE) {
    const char* missing = hexad_cuda_missing();
    if (*missing) fail(HEXAD_UNSUPPORTED, "CUDA tensor: %s", missing);
    return true;
  }
  fail(HEXAD_UNSUPPORTED, "device type %d: hexad serves CPU (1) and CUDA (2)", t.device_type);
}

}  // namespace hexad
