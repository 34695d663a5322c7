#include "hexad/hexad.h"

extern "C" const char* hexad_cuda_missing(void) {
  return "";
}
