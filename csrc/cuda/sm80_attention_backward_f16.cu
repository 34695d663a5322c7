// sm80_attention_backward.cuh for f16; a type a file, so that they compile side by side.
#include "cuda/sm80_attention_backward.cuh"

namespace hexad {
namespace cuda {

void sm80_attend_backward(const BackwardTask& task, f16, hexad_stream stream) {
  backward_by_head_dim<f16>(task, stream);
}

}  // namespace cuda
}  // namespace hexad
