#pragma once
// Pinned host memory on the way to the device: two halves in turn, so that filling one overlaps copying the other and
// small uploads wait for nothing.
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <functional>
#include <span>

#include "ops/backend.h"

namespace isobit::cuda {

class Staging {
 public:
  Staging(cudaStream_t stream, size_t bytes_per_half);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Stream-ordered; `from` may change once this returns.
  void upload(void* to, const void* from, size_t bytes);
  // Waits for the stream.
  void download(void* to, const void* from, size_t bytes);
  // All in one kernel that reads the pinned memory, or one wait. Parts' addresses and bytes are multiples of 4.
  void upload_all(std::span<const Upload> parts);
  void download_all(std::span<const Download> parts);
  // One kernel that writes pinned memory; what comes back waits for it and hands the bytes on. Two may be under way.
  // Parts as for upload_all, at most 16.
  std::function<void()> download_later(std::span<const Download> parts);
  size_t half_bytes() const { return half_bytes_; }

 private:
  struct Half {
    std::byte* memory = nullptr;
    cudaEvent_t copied = nullptr;
    size_t used = 0;
  };
  // Where a download of download_later lands.
  struct Landing {
    std::byte* memory = nullptr;
    size_t bytes = 0;
    cudaEvent_t arrived = nullptr;
  };
  // `bytes` of pinned memory, at most half_bytes_, that no copy in flight uses.
  std::byte* take(size_t bytes);

  cudaStream_t stream_;
  size_t half_bytes_;
  std::array<Half, 2> halves_;
  size_t current_ = 0;
  std::array<Landing, 2> landings_;
  size_t next_landing_ = 0;
};

}  // namespace isobit::cuda
