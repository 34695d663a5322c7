// Memory that will be needed, asked for beside other work.
#pragma once

#include <algorithm>

#include "cpu/vec.h"

namespace hexad {
namespace {

// Rows of keys and rows of values, into the second-level cache. A line each of four streams, the
// halves of both, goes out at a time: the processor runs ahead of each stream that goes up, so that
// more lines are under way than it would ask for in one stream, or in jumps from row to row.
class Ahead {
 public:
  static constexpr int64_t kLine = 64, kStep = 4 * kLine;

  Ahead() = default;
  template <class T>
  Ahead(const T* const* k, const T* const* v, int rows, int64_t k_elements, int64_t v_elements)
      : k_(reinterpret_cast<const char* const*>(k)),
        v_(reinterpret_cast<const char* const*>(v)),
        half_((rows + 1) / 2),
        second_(rows - half_),
        k_size_(k_elements * int64_t(sizeof(T))),
        v_size_(v_elements * int64_t(sizeof(T))) {}

  // As much as `bytes` of work beside it read.
  HEXAD_INLINE void ask(int64_t bytes) {
    for (due_ += bytes; due_ >= kStep; due_ -= kStep) next();
  }
  // As much as kStep bytes of work beside it read.
  HEXAD_INLINE void next() {
    if (row_ < half_) step();
  }
  HEXAD_INLINE void rest() {
    while (row_ < half_) step();
  }

 private:
  HEXAD_INLINE void step() {
    if (at_ < k_size_) {
      __builtin_prefetch(k_[row_] + at_, 0, 2);
      __builtin_prefetch(k_[row_ + second_] + at_, 0, 2);
    }
    if (at_ < v_size_) {
      __builtin_prefetch(v_[row_] + at_, 0, 2);
      __builtin_prefetch(v_[row_ + second_] + at_, 0, 2);
    }
    at_ += kLine;
    if (at_ >= std::max(k_size_, v_size_)) at_ = 0, ++row_;
  }

  const char* const* k_ = nullptr;
  const char* const* v_ = nullptr;
  int row_ = 0, half_ = 0, second_ = 0;
  int64_t at_ = 0, due_ = 0, k_size_ = 0, v_size_ = 0;
};

}  // namespace
}  // namespace hexad
