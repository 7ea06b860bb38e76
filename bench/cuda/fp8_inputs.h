#pragma once
// Inputs of the block-scaled GEMMs' benchmarks.
#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "gpu_bench.h"
#include "numerics/convert.h"
#include "ops/cuda/device.h"

namespace isobit::bench {

// Quantised bell-shaped values, the same few million over and over.
inline std::vector<uint8_t> bell(size_t count) {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal(0.0f, 120.0f);
  std::vector<uint8_t> v(count);
  for (uint8_t& b : v) b = numerics::f32_to_e4m3(normal(rng));
  return v;
}

// `values` over and over.
template <typename T>
std::unique_ptr<DeviceBuffer> filled(const std::vector<T>& values, size_t count) {
  auto buffer = std::make_unique<DeviceBuffer>(count * sizeof(T));
  T* to = buffer->template data<T>();
  size_t done = std::min(values.size(), count);
  cuda::check(cudaMemcpy(to, values.data(), done * sizeof(T), cudaMemcpyHostToDevice), "fill");
  for (size_t more; done < count; done += more) {
    more = std::min(done, count - done);
    cuda::check(cudaMemcpy(to + done, to, more * sizeof(T), cudaMemcpyDeviceToDevice), "fill");
  }
  return buffer;
}

inline std::unique_ptr<DeviceBuffer> random_scales(size_t count) {
  std::vector<float> v(count);
  std::mt19937_64 rng(2);
  std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
  for (float& s : v) s = uniform(rng) / 448.0f;
  auto buffer = std::make_unique<DeviceBuffer>(count * 4);
  cuda::check(cudaMemcpy(buffer->data(), v.data(), count * 4, cudaMemcpyHostToDevice), "fill");
  return buffer;
}

}  // namespace isobit::bench
