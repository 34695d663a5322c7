#pragma once

#include "cuda/launch.h"

namespace hexad {
namespace cuda {

// Attention on sm_90a by TMA and wgmma. False when the call or the device is not for it: then
// nothing has been done.
bool sm90_attention(const AttentionArgs& args, hexad_stream stream);

}  // namespace cuda
}  // namespace hexad
