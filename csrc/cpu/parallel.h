// Threads of the host's OpenMP runtime, found at run time (parallel.cpp): the library links none.
#pragma once

#include <cstdint>

namespace hexad {

// Runs body(ctx, begin, end) over [0, n) in chunks of `grain`, on as many threads as the host asks
// for. Chunks are handed out in no fixed order: a body must only write what its range owns.
void parallel_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* ctx);

// At most this many bodies run at once; parallel_thread() numbers them from 0.
int parallel_threads();
int parallel_thread();

template <class Body>
inline void parallel_for(int64_t n, int64_t grain, const Body& body) {
  parallel_run(
      n, grain,
      [](void* ctx, int64_t begin, int64_t end) { (*static_cast<const Body*>(ctx))(begin, end); },
      const_cast<Body*>(&body));
}

}  // namespace hexad
