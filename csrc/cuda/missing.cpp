// Stands in for the CUDA kernels when the build has no CUDA compiler.
#include "cuda/launch.h"

extern "C" const char* hexad_cuda_missing(void) {
  return "this build has no CUDA kernels (no nvcc was found when it was built)";
}

namespace hexad {
namespace cuda {

#define OP(op, Args)                                     \
  void op(const Args&, hexad_stream) {                   \
    fail(HEXAD_UNSUPPORTED, "%s", hexad_cuda_missing()); \
  }
#include "cuda/ops.def"
#undef OP

}  // namespace cuda
}  // namespace hexad
