// The emulator behind hopper.h.
#pragma once

#include <cstdint>

namespace cuda_emulator {

// A box of a tensor with four dimensions, the first contiguous; strides in bytes.
struct TensorMap {
  char* base;
  int64_t sizes[4], strides[4];
  int rows, columns;  // of the box, of 2 bytes an element
};

struct Wgmma {
  bool bf16, across, add;
  int columns;
  float* d;
  const uint32_t* a;  // registers, or null
  uint64_t a_shared, b_shared;
};

void barrier_init(uint64_t* barrier, int arrivals, const char* file, int line);
void fence_barrier_init();
void barrier_arrive(uint64_t* barrier, int64_t expect, const char* file, int line);
void barrier_wait(uint64_t* barrier, int parity, const char* file, int line);
void tensor_copy(bool store, const TensorMap& map, void* shared, uint64_t* barrier,
                 const int (&at)[4], const char* file, int line);
void bulk_load(void* to, const void* from, int bytes, uint64_t* barrier, const char* file,
               int line);
void bulk_commit();
void bulk_wait(int pending);
void fence_async();
uint32_t shared_address(const void* p, const char* file, int line);
void wgmma_fence();
void wgmma(const Wgmma& what, const char* file, int line);
void wgmma_commit();
void wgmma_wait(int pending, const char* file, int line);

// Null, or why the driver would refuse the map.
const char* check_tensor_map(const void* base, const int64_t (&sizes)[4],
                             const int64_t (&strides)[3], int rows);
// HEXAD_EMULATED_CHIP names the chip whose kernels run: "sm_90" or nothing.
bool emulates(const char* chip);

}  // namespace cuda_emulator
