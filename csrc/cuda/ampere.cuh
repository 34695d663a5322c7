// What Ampere (sm_80) and later give a warp, each a line of PTX: matrix products on the tensor
// cores, the loads that fill their fragments, copies from global to shared memory that run on
// their own. tests/cuda_emulator/ampere.h has the same functions for tests without a GPU.
//
// Fragments of mma.m16n8k16, for lane = 4 g + t (two numbers a register, the first in the low
// half):
//   a[0] A[g][2t, 2t+1]   a[1] A[g+8][2t, 2t+1]   a[2] A[g][2t+8, 2t+9]   a[3] A[g+8][2t+8, 2t+9]
//   b0   B[2t, 2t+1][g]   b1   B[2t+8, 2t+9][g]
//   c[0] C[g][2t]  c[1] C[g][2t+1]  c[2] C[g+8][2t]  c[3] C[g+8][2t+1]
#pragma once

#include "cuda/common.cuh"

#ifdef HEXAD_CUDA_EMULATOR
#include "ampere.h"
#else
namespace hexad {
namespace cuda {

__device__ inline unsigned shared_address(const void* p) {
  return unsigned(__cvta_generic_to_shared(p));
}

// A place in shared memory as ldmatrix takes it: 32 bits, to which a constant adds for nothing.
using SharedAt = unsigned;
__device__ inline SharedAt shared_at(const void* p) {
  return shared_address(p);
}

// C += A B in float32; the whole warp calls it.
template <class T>
__device__ inline void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1);
#define HEXAD_MMA(type, name)                                                                   \
  template <>                                                                                   \
  __device__ inline void mma_m16n8k16<type>(float (&c)[4], const unsigned (&a)[4], unsigned b0, \
                                            unsigned b1) {                                      \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                         \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));               \
  }
HEXAD_MMA(bf16, "bf16")
HEXAD_MMA(f16, "f16")
#undef HEXAD_MMA

// 8 x 8 matrices of 16-bit numbers from shared memory: lanes 8 i .. 8 i + 7 name the 16-byte
// rows of matrix i (`bytes` after `row`), and r[i] gets the two numbers of its row g at columns 2t,
// 2t + 1; with `trans` those of its column g at rows 2t, 2t + 1.
#define HEXAD_LDMATRIX(name, count, modifiers, list, ...)                          \
  __device__ inline void name(unsigned (&r)[count], SharedAt row, int bytes = 0) { \
    asm volatile("ldmatrix.sync.aligned.m8n8." modifiers ".shared.b16 " list       \
                 : __VA_ARGS__                                                     \
                 : "r"(row + unsigned(bytes))                                      \
                 : "memory");                                                      \
  }
HEXAD_LDMATRIX(ldmatrix_x1, 1, "x1", "{%0}, [%1];", "=r"(r[0]))
HEXAD_LDMATRIX(ldmatrix_x1_trans, 1, "x1.trans", "{%0}, [%1];", "=r"(r[0]))
HEXAD_LDMATRIX(ldmatrix_x2, 2, "x2", "{%0, %1}, [%2];", "=r"(r[0]), "=r"(r[1]))
HEXAD_LDMATRIX(ldmatrix_x2_trans, 2, "x2.trans", "{%0, %1}, [%2];", "=r"(r[0]), "=r"(r[1]))
HEXAD_LDMATRIX(ldmatrix_x4, 4, "x4", "{%0, %1, %2, %3}, [%4];", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
               "=r"(r[3]))
HEXAD_LDMATRIX(ldmatrix_x4_trans, 4, "x4.trans", "{%0, %1, %2, %3}, [%4];", "=r"(r[0]), "=r"(r[1]),
               "=r"(r[2]), "=r"(r[3]))
#undef HEXAD_LDMATRIX

// Starts a copy of kBytes (4, 8 or 16; both places aligned to as much), of which the first
// `from_bytes` are read and the rest become 0.
template <int kBytes>
__device__ inline void cp_async(void* to, const void* from, int from_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "4, 8 or 16 bytes");
  if (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(from_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                 "l"(from), "n"(kBytes), "r"(from_bytes)
                 : "memory");
}

// Closes the group of this thread's copies since the last; waits until at most kPending of its
// groups are under way. What other threads copied is there after a barrier that follows their wait.
__device__ inline void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Loads do not move across: many that started early would each hold a register.
__device__ inline void keep_order() {
  asm volatile("" ::: "memory");
}

// 2^x to about 2^-22, subnormal results become 0.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers rounded into a register, `low` in its low half.
__device__ inline unsigned pack(bf16, float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const unsigned&>(both);
}
__device__ inline unsigned pack(f16, float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return reinterpret_cast<const unsigned&>(both);
}

}  // namespace cuda
}  // namespace hexad
#endif
