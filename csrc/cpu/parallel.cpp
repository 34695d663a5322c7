#include "cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>

#include "check.h"

namespace hexad {
namespace {

// The few entry points of libgomp that a parallel region needs. Torch's wheels carry their own
// copy, sometimes under another file name; a second runtime beside it makes both spin against each
// other.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
  int (*thread)() = nullptr;
  std::string path;
};

OpenMP runtime;
std::once_flag bound_once;
std::atomic<bool> bound{false};

bool bind(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return false;
  OpenMP omp;
  omp.parallel = reinterpret_cast<decltype(omp.parallel)>(dlsym(handle, "GOMP_parallel"));
  omp.max_threads = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_max_threads"));
  omp.in_parallel = reinterpret_cast<int (*)()>(dlsym(handle, "omp_in_parallel"));
  omp.thread = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_thread_num"));
  if (!omp.parallel || !omp.max_threads || !omp.in_parallel || !omp.thread) return false;
  Dl_info info;
  omp.path = dladdr(reinterpret_cast<void*>(omp.parallel), &info) ? info.dli_fname : path;
  runtime = omp;
  bound = true;
  return true;
}

const OpenMP& openmp() {
  if (!bound) std::call_once(bound_once, [] { bind("libgomp.so.1"); });
  return runtime;
}

// The child of a fork has the runtime's memory but none of its threads, and a region would wait for
// them for ever. Once a region has run here, a child is serial.
std::atomic<bool> started{false}, orphan{false};

void start() {
  if (!started.load(std::memory_order_relaxed) && !started.exchange(true))
    pthread_atfork(nullptr, nullptr, [] { orphan = true; });
}

// Each thread starts on its own share of the chunks, the same one call after call: what an op left
// in a core's cache is what that core takes up in the next. Whoever is done helps the others.
constexpr int kShares = 32;

struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

struct Region {
  int64_t n, grain;
  void (*body)(void*, int64_t, int64_t);
  void* ctx;
  int shares;
  int (*thread)();
  Share share[kShares];
};

void work(void* p) {
  Region& r = *static_cast<Region*>(p);
  const int first = r.thread() % r.shares;
  for (int k = 0; k < r.shares; ++k) {
    Share& share = r.share[(first + k) % r.shares];
    for (int64_t i; (i = share.next.fetch_add(1)) < share.end;)
      r.body(r.ctx, i * r.grain, std::min((i + 1) * r.grain, r.n));
  }
}

}  // namespace

int parallel_threads() {
  const OpenMP& omp = openmp();
  return omp.parallel && !orphan && !omp.in_parallel() ? omp.max_threads() : 1;
}

int parallel_thread() {
  const OpenMP& omp = openmp();
  return omp.thread ? omp.thread() : 0;
}

void parallel_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* ctx) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (n + grain - 1) / grain;
  const int64_t threads = chunks > 1 ? std::min<int64_t>(chunks, parallel_threads()) : 1;
  if (threads <= 1) return body(ctx, 0, n);
  start();
  Region region;
  region.n = n, region.grain = grain, region.body = body, region.ctx = ctx;
  region.thread = openmp().thread;
  region.shares = int(std::min<int64_t>(threads, kShares));
  for (int i = 0; i < region.shares; ++i) {
    region.share[i].next = chunks * i / region.shares;
    region.share[i].end = chunks * (i + 1) / region.shares;
  }
  openmp().parallel(work, &region, unsigned(threads), 0);
}

}  // namespace hexad

extern "C" hexad_status hexad_bind_openmp(const char* path) {
  return hexad::guarded([&] {
    const char* file = path ? path : "libgomp.so.1";
    HEXAD_REQUIRE(hexad::bind(file), "path: no OpenMP runtime (libgomp) at '%s'", file);
  });
}

extern "C" const char* hexad_openmp_path(void) {
  return hexad::openmp().path.c_str();
}
