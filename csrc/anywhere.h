// Small functions that the C++ compiler and nvcc both take.
#pragma once

#if defined(__CUDACC__)
#define HEXAD_ANYWHERE __host__ __device__ inline
#else
#define HEXAD_ANYWHERE inline __attribute__((always_inline))
#endif
