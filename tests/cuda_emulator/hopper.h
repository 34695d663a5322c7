// csrc/cuda/hopper.cuh for the emulator: the same functions. What is asynchronous there happens as
// late here as the order of threads allows: a bulk copy lands when nobody can run or by chance
// before, wgmma computes when it is waited for and holds NaN until then.
#pragma once

#include <type_traits>

#include "hopper_api.h"

#define HEXAD_HOPPER
#define HEXAD_DYNAMIC_SHARED_1024(type, name) HEXAD_DYNAMIC_SHARED(type, name)

namespace hexad {
namespace cuda {

#define HEXAD_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

using cuda_emulator::TensorMap;

inline bool on_hopper() {
  return cuda_emulator::emulates("sm_90");
}
inline int multiprocessors() {
  return 3;  // few, so that a persistent grid has more tiles than blocks
}

inline TensorMap tensor_map(const char* op, const void* base, bool, const int64_t (&sizes)[4],
                            const int64_t (&strides)[3], int rows) {
  if (const char* why = cuda_emulator::check_tensor_map(base, sizes, strides, rows))
    fail(HEXAD_CUDA, "%s: tensor map: %s", op, why);
  TensorMap map{static_cast<char*>(const_cast<void*>(base)), {}, {}, rows, kSwizzledColumns};
  for (int i = 0; i < 4; ++i) {
    map.sizes[i] = sizes[i];
    map.strides[i] = i ? strides[i - 1] : 2;
  }
  return map;
}

inline uint32_t shared_address(const void* p, HEXAD_WHERE) {
  return cuda_emulator::shared_address(p, file, line);
}
inline void barrier_init(uint64_t* barrier, int arrivals, HEXAD_WHERE) {
  cuda_emulator::barrier_init(barrier, arrivals, file, line);
}
inline void fence_barrier_init() {
  cuda_emulator::fence_barrier_init();
}
inline void barrier_arrive(uint64_t* barrier, HEXAD_WHERE) {
  cuda_emulator::barrier_arrive(barrier, 0, file, line);
}
inline void barrier_arrive_expect(uint64_t* barrier, int bytes, HEXAD_WHERE) {
  cuda_emulator::barrier_arrive(barrier, bytes, file, line);
}
inline void barrier_wait(uint64_t* barrier, int parity, HEXAD_WHERE) {
  cuda_emulator::barrier_wait(barrier, parity, file, line);
}
inline void tensor_load(void* to, const TensorMap& map, uint64_t* barrier, int c0, int c1, int c2,
                        int c3, HEXAD_WHERE) {
  cuda_emulator::tensor_copy(false, map, to, barrier, {c0, c1, c2, c3}, file, line);
}
inline void tensor_store(const TensorMap& map, const void* from, int c0, int c1, int c2, int c3,
                         HEXAD_WHERE) {
  cuda_emulator::tensor_copy(true, map, const_cast<void*>(from), nullptr, {c0, c1, c2, c3}, file,
                             line);
}
inline void bulk_load(void* to, const void* from, int bytes, uint64_t* barrier, HEXAD_WHERE) {
  cuda_emulator::bulk_load(to, from, bytes, barrier, file, line);
}
inline void bulk_commit() {
  cuda_emulator::bulk_commit();
}
template <int kPending>
void bulk_wait() {
  cuda_emulator::bulk_wait(kPending);
}
inline void prefetch_map(const TensorMap&) {}
inline void fence_async() {
  cuda_emulator::fence_async();
}

inline void named_sync(int id, int threads, HEXAD_WHERE) {
  cuda_emulator::named_barrier(id, threads, true, file, line);
}
inline void named_arrive(int id, int threads, HEXAD_WHERE) {
  cuda_emulator::named_barrier(id, threads, false, file, line);
}
template <int kRegisters>
void take_registers() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0, "setmaxnreg");
}
template <int kRegisters>
void give_registers() {
  take_registers<kRegisters>();
}

inline void wgmma_fence() {
  cuda_emulator::wgmma_fence();
}
inline void wgmma_commit() {
  cuda_emulator::wgmma_commit();
}
template <int kPending>
void wgmma_wait(HEXAD_WHERE) {
  cuda_emulator::wgmma_wait(kPending, file, line);
}
template <class Registers>
void keep(Registers&) {}

template <class T, int kColumns, bool kAcross>
struct Wgmma {
  static_assert(kColumns % 8 == 0 && kColumns <= 256, "N of wgmma");
  static constexpr bool kBf16 = sizeof(T) == 2 && !std::is_same<T, f16>::value;
  static void run(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool add, HEXAD_WHERE) {
    cuda_emulator::wgmma({kBf16, kAcross, add, kColumns, d, nullptr, a, b}, file, line);
  }
  static void run(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b, bool add,
                  HEXAD_WHERE) {
    cuda_emulator::wgmma({kBf16, kAcross, add, kColumns, d, a, 0, b}, file, line);
  }
};

#undef HEXAD_WHERE

}  // namespace cuda
}  // namespace hexad
