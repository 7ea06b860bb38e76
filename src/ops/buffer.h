#pragma once
// Memory owned by a backend. data() is an address for the backend's operators alone; host code moves bytes in and out
// with Backend::upload and Backend::download.
#include <cstddef>
#include <memory>
#include <utility>

namespace isobit {

class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<void> owner, size_t bytes) : owner_(std::move(owner)), bytes_(bytes) {}

  template <typename T = void>
  T* data() const {
    return static_cast<T*>(owner_.get());
  }
  size_t bytes() const { return bytes_; }
  explicit operator bool() const { return owner_ != nullptr; }

 private:
  std::shared_ptr<void> owner_;
  size_t bytes_ = 0;
};

}  // namespace isobit
