#pragma once
// Memory for packed weights, in large pieces on huge pages: decoding streams all weights once a token.
#include <cstddef>
#include <memory>

namespace isobit::cpu {

class WeightArena {
 public:
  // 64-byte aligned, not cleared; freed with the last allocation of its piece. Not thread-safe.
  std::shared_ptr<std::byte> allocate(size_t bytes);

 private:
  std::shared_ptr<std::byte> piece_;
  size_t used_ = 0, size_ = 0;
};

}  // namespace isobit::cpu
