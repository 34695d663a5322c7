// wgmma m64nNk16 for the N that kernels use; a list of registers per N, as inline PTX wants it.
#pragma once

namespace hexad {
namespace cuda {

#define HEXAD_D8(i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define HEXAD_D32(i) HEXAD_D8(i), HEXAD_D8(i + 8), HEXAD_D8(i + 16), HEXAD_D8(i + 24)
#define HEXAD_D64(i) HEXAD_D32(i), HEXAD_D32(i + 32)
#define HEXAD_D128(i) HEXAD_D64(i), HEXAD_D64(i + 64)
#define HEXAD_LIST32                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HEXAD_LIST64                                                                 \
  HEXAD_LIST32                                                                       \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HEXAD_LIST128                                                                          \
  HEXAD_LIST64                                                                                 \
  ", "                                                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, "                                                                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"

// d (64 x kColumns, spread over the warpgroup) = a b + (add ? d : 0). a: from shared memory by its
// descriptor, rows along K; or 4 registers of pairs. b: by its descriptor, as columns along K, or
// with kAcross as rows of K.
template <class T, int kColumns, bool kAcross>
struct Wgmma;

#define HEXAD_WGMMA(T, ptx, N, R, across, bit, n0, n1, n2, n3, n4, n5)                            \
  template <>                                                                                     \
  struct Wgmma<T, N, across> {                                                                    \
    static __device__ __forceinline__ void run(float (&d)[R], uint64_t a, uint64_t b, bool add) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n2                                       \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ptx "." ptx            \
                   " {" HEXAD_LIST##R "}, %" #n0 ", %" #n1 ", p, 1, 1, 0, " #bit ";\n}\n"         \
                   : HEXAD_D##R(0)                                                                \
                   : "l"(a), "l"(b), "r"(int(add)));                                              \
    }                                                                                             \
    static __device__ __forceinline__ void run(float (&d)[R], const uint32_t (&a)[4], uint64_t b, \
                                               bool add) {                                        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #n5                                       \
                   ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." ptx "." ptx            \
                   " {" HEXAD_LIST##R "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4        \
                                      ", p, 1, 1, " #bit ";\n}\n"                                 \
                   : HEXAD_D##R(0)                                                                \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));          \
    }                                                                                             \
  };
#define HEXAD_WGMMA_BOTH(T, ptx, N, R, ...)        \
  HEXAD_WGMMA(T, ptx, N, R, false, 0, __VA_ARGS__) \
  HEXAD_WGMMA(T, ptx, N, R, true, 1, __VA_ARGS__)
#define HEXAD_WGMMA_ALL(T, ptx)                             \
  HEXAD_WGMMA_BOTH(T, ptx, 64, 32, 32, 33, 34, 35, 36, 37)  \
  HEXAD_WGMMA_BOTH(T, ptx, 128, 64, 64, 65, 66, 67, 68, 69) \
  HEXAD_WGMMA_BOTH(T, ptx, 256, 128, 128, 129, 130, 131, 132, 133)
HEXAD_WGMMA_ALL(bf16, "bf16")
HEXAD_WGMMA_ALL(f16, "f16")
#undef HEXAD_WGMMA_ALL
#undef HEXAD_WGMMA_BOTH
#undef HEXAD_WGMMA
#undef HEXAD_LIST128
#undef HEXAD_LIST64
#undef HEXAD_LIST32
#undef HEXAD_D128
#undef HEXAD_D64
#undef HEXAD_D32
#undef HEXAD_D8

}  // namespace cuda
}  // namespace hexad
