#include "cache.h"

#include <unistd.h>

#include <algorithm>

namespace hexad {

bool beyond_cache(int64_t bytes) {
  static const int64_t size = [] {
    int64_t found = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    found = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    // A guest is told of the whole of a cache that it shares with others' cores.
    const int64_t share = (int64_t(16) << 20) * std::max<int64_t>(1, sysconf(_SC_NPROCESSORS_ONLN));
    return found > 0 ? std::min(found, share) : int64_t(32) << 20;
  }();
  return bytes >= size / 2;
}

}  // namespace hexad
