// sm80_attention.cuh for bf16; a type a file, so that they compile side by side.
#include "cuda/sm80_attention.cuh"

namespace hexad {
namespace cuda {

void sm80_attend(const char* op, AttendTask task, bf16, hexad_stream stream) {
  by_head_dim<bf16>(op, task, stream);
}

}  // namespace cuda
}  // namespace hexad
