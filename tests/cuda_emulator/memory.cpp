#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <mutex>

namespace cuda_emulator {
namespace {

constexpr size_t kPage = 4096, kWindow = 1 << 20, kGuardBytes = 64 << 10;
constexpr unsigned char kPoison = 0xff, kSlack = 0xfe;

std::mutex buffers_lock;
std::map<const void*, Buffer> buffers;

char* reserve(size_t bytes, int protection) {
  void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

size_t pages_of(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

}  // namespace

char* SharedMemory::window() {
  static char* const window = reserve(kWindow, PROT_NONE);
  return window;
}

char* SharedMemory::async_view() {
  static char* const view = reserve(kWindow, PROT_READ | PROT_WRITE);
  return view;
}

bool SharedMemory::holds(const void* p) {
  const char* at = static_cast<const char*>(p);
  return at >= window() && at < window() + kWindow;
}

const char* SharedMemory::start(size_t dynamic_bytes) {
  if (!window() || !async_view()) return "no memory for shared arrays";
  if (used_) mprotect(window(), used_, PROT_NONE);
  arrays_.clear();
  found_.clear();
  used_ = 0;
  return map(nullptr, dynamic_bytes) ? nullptr : "no memory for shared arrays";
}

void* SharedMemory::array(const void* key, size_t bytes) {
  if (found_.find(key) == found_.end() && !map(key, bytes)) return nullptr;
  return window() + arrays_[found_[key]].begin;
}

bool SharedMemory::map(const void* key, size_t bytes) {
  const size_t room = pages_of(bytes);
  if (used_ + room + kPage > kWindow) return false;
  // The end meets the unmapped page as closely as an alignment of 16 allows; a size of whole
  // kilobytes keeps 1024.
  const Array array{(used_ + room - bytes) / 16 * 16, bytes, used_, used_ + room};
  if (room && mprotect(window() + used_, room, PROT_READ | PROT_WRITE)) return false;
  used_ += room + kPage;
  found_[key] = arrays_.size();
  arrays_.push_back(array);
  fill(array);
  return true;
}

void SharedMemory::fill(const Array& a) {
  char* w = window();
  memset(w + a.first_page, kSlack, a.begin - a.first_page);
  memset(w + a.begin, kPoison, a.bytes);
  memset(w + a.begin + a.bytes, kSlack, a.end_page - a.begin - a.bytes);
  memset(async_view() + a.first_page, kPoison, a.end_page - a.first_page);
}

void SharedMemory::clear() {
  for (const Array& a : arrays_) fill(a);
}

void SharedMemory::fence() {
  for (const Array& a : arrays_) memcpy(async_view() + a.begin, window() + a.begin, a.bytes);
}

size_t SharedMemory::offset(const void* p, size_t bytes) const {
  if (!holds(p)) return ~size_t(0);
  const size_t at = size_t(static_cast<const char*>(p) - window());
  for (const Array& a : arrays_)
    if (at >= a.begin && at + bytes <= a.begin + a.bytes) return at;
  return ~size_t(0);
}

std::string SharedMemory::locate(const void* address) const {
  const size_t at = size_t(static_cast<const char*>(address) - window());
  for (const Array& a : arrays_)
    if (at >= a.begin && at < a.end_page + kPage)
      return std::to_string(at - a.begin - a.bytes) + " bytes past the end of a shared array of " +
             std::to_string(a.bytes) + " bytes";
  return "shared address " + std::to_string(at) + ", where no array is";
}

std::string SharedMemory::overrun() const {
  for (const Array& a : arrays_) {
    const auto touched = [](const char* p) { return static_cast<unsigned char>(*p) != kSlack; };
    const std::string which = " of a shared array of " + std::to_string(a.bytes) + " bytes";
    for (size_t i = a.first_page; i < a.begin; ++i)
      if (touched(window() + i)) return "a write before the start" + which;
    for (size_t i = a.begin + a.bytes; i < a.end_page; ++i)
      if (touched(window() + i)) return "a write past the end" + which;
  }
  return "";
}

std::string locate_global(const void* address) {
  const std::lock_guard<std::mutex> lock(buffers_lock);
  const char* at = static_cast<const char*>(address);
  for (const auto& [data, b] : buffers) {
    if (at < b.pages - kGuardBytes || at >= b.pages + b.page_bytes + kGuardBytes) continue;
    const std::string of = " of " + b.name + " (" + std::to_string(b.bytes) + " bytes)";
    if (at < b.data) return std::to_string(b.data - at) + " bytes before the start" + of;
    return std::to_string(at - b.data - b.bytes) + " bytes past the end" + of;
  }
  char text[64];
  snprintf(text, sizeof text, "address %p, where no memory is", address);
  return text;
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

extern "C" __attribute__((visibility("default"))) void* cuda_emulator_allocate(size_t bytes,
                                                                               int at_start,
                                                                               const char* name) {
  const size_t room = pages_of(bytes ? bytes : 1);
  char* all = reserve(room + 2 * kGuardBytes, PROT_NONE);
  if (!all) return nullptr;
  char* pages = all + kGuardBytes;
  if (mprotect(pages, room, PROT_READ | PROT_WRITE)) return nullptr;
  char* data = at_start ? pages : pages + room - bytes;
  const std::lock_guard<std::mutex> lock(buffers_lock);
  buffers[data] = {data, pages, bytes, room, name};
  return data;
}

extern "C" __attribute__((visibility("default"))) void cuda_emulator_free(void* data) {
  const std::lock_guard<std::mutex> lock(buffers_lock);
  const auto found = buffers.find(data);
  if (found == buffers.end()) return;
  munmap(found->second.pages - kGuardBytes, found->second.page_bytes + 2 * kGuardBytes);
  buffers.erase(found);
}
