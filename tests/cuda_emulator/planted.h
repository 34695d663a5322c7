// Runs a kernel that may have a bug planted in it.
#pragma once

#include <cstdio>
#include <cstring>

#include "cuda/common.cuh"
#include "memory.h"

// An array on guard pages, as tests put an op's tensors.
template <class T>
struct Guarded {
  T* data;
  size_t count;
  Guarded(size_t count, const char* name, bool at_start = false)
      : data(static_cast<T*>(cuda_emulator_allocate(count * sizeof(T), at_start, name))),
        count(count) {}
  ~Guarded() { cuda_emulator_free(data); }
  Guarded(const Guarded&) = delete;
};

// 0 when `run` launches kernels and finds their result right, 1 when wrong; 2 and the emulator's
// complaint when it refuses.
template <class Run>
int outcome(int seed, char* complaint, int size, Run run) {
  cuda_emulator::seed(uint64_t(seed));
  try {
    return run() ? 0 : 1;
  } catch (const hexad::Failure&) {
    snprintf(complaint, size_t(size), "%s", hexad_last_error());
    return 2;
  }
}

#define HEXAD_PLANTED(name)                                                                       \
  extern "C" __attribute__((visibility("default"))) int name(const char* kernel, const char* bug, \
                                                             int seed, char* complaint, int size)
