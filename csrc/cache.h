#pragma once

#include <cstdint>

namespace hexad {

// Whether an output of so many bytes would push itself out of the last-level cache while it is
// written: stores that go past the cache then spare it reading each line first.
bool beyond_cache(int64_t bytes);

}  // namespace hexad
