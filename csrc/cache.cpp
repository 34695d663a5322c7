#include "cache.h"

#include <unistd.h>

namespace hexad {

bool beyond_cache(int64_t bytes) {
  static const int64_t size = [] {
    int64_t found = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    found = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return found > 0 ? found : int64_t(32) << 20;
  }();
  return bytes >= size / 2;
}

}  // namespace hexad
