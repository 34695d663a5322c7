// Memory whose end is watched: shared memory in a window of addresses, where each array ends at an
// unmapped page, and buffers that tests put on such pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace cuda_emulator {

// The shared memory of the running block. A shared address is an offset into the window.
class SharedMemory {
 public:
  struct Array {
    size_t begin, bytes, first_page, end_page;
  };

  // Forgets the arrays and maps the dynamic one, which lies first. Null, or what went wrong.
  const char* start(size_t dynamic_bytes);
  // The array of this key, new ones filled with NaN; null when there is no room.
  void* array(const void* key, size_t bytes);
  void* dynamic() const { return window() + arrays_[0].begin; }
  // Fills what is there with NaN for the next block.
  void clear();

  static char* window();
  static bool holds(const void* p);
  // What bulk copies and wgmma see of shared memory: ordinary writes reach it by a fence only.
  static char* async_view();
  void fence();
  // The offset of [p, p + bytes), or ~0 when it is not inside one array.
  size_t offset(const void* p, size_t bytes) const;

  std::string locate(const void* address) const;
  // A write just before or after an array that hit no unmapped page; empty if there is none.
  std::string overrun() const;

 private:
  bool map(const void* key, size_t bytes);
  void fill(const Array& array);

  std::vector<Array> arrays_;
  std::map<const void*, size_t> found_;
  size_t used_ = 0;
};

// A buffer at the edge of its pages: its last byte, or its first, next to an unmapped one.
struct Buffer {
  char *data, *pages;
  size_t bytes, page_bytes;
  std::string name;
};

// Where an address that a kernel could not reach lies: beside which buffer, on which side.
std::string locate_global(const void* address);

}  // namespace cuda_emulator

// For tests, by ctypes. Guards are 64 KiB wide on both sides.
extern "C" void* cuda_emulator_allocate(size_t bytes, int at_start, const char* name);
extern "C" void cuda_emulator_free(void* data);
