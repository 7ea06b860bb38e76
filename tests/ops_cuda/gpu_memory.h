#pragma once
// Device memory for tests: poisoned, with guard bands on both sides that must be found untouched.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "ops/cuda/device.h"

namespace isobit {

inline uint64_t fresh_seed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

template <typename T>
class GpuArray {
 public:
  explicit GpuArray(size_t count) : count_(count) {
    cuda::check(cudaMalloc(&base_, bytes() + 2 * kGuard), "test memory");
    poison();
  }
  explicit GpuArray(const std::vector<T>& host) : GpuArray(host.size()) { set(host); }
  ~GpuArray() { cudaFree(base_); }
  GpuArray(const GpuArray&) = delete;
  GpuArray& operator=(const GpuArray&) = delete;

  T* data() const { return reinterpret_cast<T*>(static_cast<std::byte*>(base_) + kGuard); }
  size_t count() const { return count_; }
  // Both wait: the tests' own streams do not wait for the default one.
  void poison() {
    cuda::check(cudaMemset(base_, kPoison, bytes() + 2 * kGuard), "poison");
    cuda::check(cudaDeviceSynchronize(), "poison");
  }
  void set(const std::vector<T>& host) {
    cuda::check(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "to the GPU");
    cuda::check(cudaDeviceSynchronize(), "to the GPU");
  }
  std::vector<T> get() const {
    std::vector<T> host(count_);
    cuda::check(cudaMemcpy(host.data(), data(), bytes(), cudaMemcpyDeviceToHost), "from the GPU");
    return host;
  }
  // No kernel wrote before the array or behind it.
  bool guards_intact() const {
    std::vector<uint8_t> guard(kGuard);
    for (const std::byte* p :
         {static_cast<const std::byte*>(base_), static_cast<const std::byte*>(base_) + kGuard + bytes()}) {
      cuda::check(cudaMemcpy(guard.data(), p, kGuard, cudaMemcpyDeviceToHost), "guard");
      for (const uint8_t g : guard) {
        if (g != kPoison) return false;
      }
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr int kPoison = 0xcd;
  size_t bytes() const { return count_ * sizeof(T); }
  size_t count_ = 0;
  void* base_ = nullptr;
};

}  // namespace isobit
