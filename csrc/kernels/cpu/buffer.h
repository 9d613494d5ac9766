// Memory for tiles and partials.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>

#include "kernels/problem.h"

namespace cac::cpu {

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes)
      : data_(static_cast<std::byte*>(::operator new(std::max<size_t>(bytes, 1), kAlignment))) {}
  ~AlignedBuffer() { free(); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  std::byte* at(size_t offset) const { return data_ + offset; }
  void free() {
    ::operator delete(data_, kAlignment);
    data_ = nullptr;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  std::byte* data_;
};

inline size_t size_of(DType type) {
  switch (type) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
  }
  return 0;
}

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace cac::cpu
