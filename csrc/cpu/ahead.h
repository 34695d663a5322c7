// Memory that will be needed, asked for beside other work.
#pragma once

#include <algorithm>

#include "cpu/table.h"
#include "cpu/vec.h"

namespace hexad {
namespace {

// Rows of keys and rows of values, into the second-level cache. Intel's processors run ahead of
// each stream that goes up: a line each of four, the halves of keys and of values, goes out at a
// time. On others four streams cost a fifth, and lines go out as they are read: columns of sixteen
// keys, then values row by row.
class Ahead {
 public:
  static constexpr int64_t kLine = 64, kStep = 4 * kLine;
  static constexpr int kSide = 16;

  Ahead() = default;
  template <class T>
  Ahead(const T* const* k, const T* const* v, int rows, int64_t k_elements, int64_t v_elements)
      : k_(reinterpret_cast<const char* const*>(k)),
        v_(reinterpret_cast<const char* const*>(v)),
        rows_(rows),
        half_((rows + 1) / 2),
        streams_(runs_ahead_of_streams()),
        left_(streams_ ? half_ : 2 * rows),
        k_size_(k_elements * int64_t(sizeof(T))),
        v_size_(v_elements * int64_t(sizeof(T))) {}

  // As much as `bytes` of work beside it read.
  HEXAD_INLINE void ask(int64_t bytes) {
    for (due_ += bytes; due_ >= kStep; due_ -= kStep) next();
  }
  // As much as kStep bytes of work beside it read.
  HEXAD_INLINE void next() {
    if (left_ > 0) step();
  }
  HEXAD_INLINE void rest() {
    while (left_ > 0) step();
  }

 private:
  HEXAD_INLINE void step() {
    if (streams_)
      step_streams();
    else if (left_ > rows_)
      step_keys();
    else
      step_values();
  }

  HEXAD_INLINE void step_streams() {
    if (at_ < k_size_) {
      __builtin_prefetch(k_[row_] + at_, 0, 2);
      __builtin_prefetch(k_[row_ + rows_ - half_] + at_, 0, 2);
    }
    if (at_ < v_size_) {
      __builtin_prefetch(v_[row_] + at_, 0, 2);
      __builtin_prefetch(v_[row_ + rows_ - half_] + at_, 0, 2);
    }
    at_ += kLine;
    if (at_ >= std::max(k_size_, v_size_)) at_ = 0, ++row_, --left_;
  }

  HEXAD_INLINE void step_keys() {
    const int end = std::min(row_ + 4, rows_);
    for (int r = row_; r < end; ++r) __builtin_prefetch(k_[r] + at_, 0, 2);
    row_ = end;
    if (end % kSide && end < rows_) return;
    at_ += kLine;
    const int begin = (end - 1) / kSide * kSide;
    if (at_ < k_size_) {
      row_ = begin;
      return;
    }
    at_ = 0, left_ -= end - begin;
    if (left_ == rows_) row_ = 0;
  }

  HEXAD_INLINE void step_values() {
    for (int i = 0; i < 4 && row_ < rows_; ++i) {
      __builtin_prefetch(v_[row_] + at_, 0, 2);
      at_ += kLine;
      if (at_ >= v_size_) at_ = 0, ++row_, --left_;
    }
  }

  const char* const* k_ = nullptr;
  const char* const* v_ = nullptr;
  int rows_ = 0, half_ = 0;
  bool streams_ = false;
  int left_ = 0, row_ = 0;  // rows to ask for: pairs of halves, or keys and values
  int64_t at_ = 0, due_ = 0, k_size_ = 0, v_size_ = 0;
};

}  // namespace
}  // namespace hexad
