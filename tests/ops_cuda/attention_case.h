#pragma once
// Random attention problems with their device copies, and the contract's answer for single rows. Pages lie in random
// order; everything in the cache that no key was written to is NaN.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "ops/attention.h"
#include "ops/cuda/kernels.h"

namespace isobit::test {

struct RequestShape {
  int prefix = 0, added = 1;
  bool padding = false;  // kv_len 0
};

struct AttentionShape {
  DType type = DType::kBF16, cache_type = DType::kBF16;
  int head_dim = 128, kv_heads = 1, group = 1, page_size = 16;
  std::vector<RequestShape> requests;
  float soft_cap = 0.0f, sharpness = 1.0f;  // sharpness: standard deviation of the scores
  int window = 0;
  bool causal = true, sinks = false, mask = false, tree = false;

  std::string describe() const;
};

// What a row's answer takes, in host memory; of `args` no pointer is used.
struct AttentionOnHost {
  const AttentionArgs& args;
  const uint16_t* q = nullptr;
  const int32_t *query_start = nullptr, *kv_len = nullptr, *page_table = nullptr, *tree_parent = nullptr;
  const uint64_t* mask = nullptr;
  const float* sinks = nullptr;
  // head_dim elements of the cache, widened, from element `at` on.
  std::function<void(int64_t at, uint16_t*to)> key, value;
  const float *k_scale = nullptr, *v_scale = nullptr;  // of an FP8 cache
};
// What the contract says for one row.
std::vector<uint16_t> attention_answer(const AttentionOnHost& a, int token, int head);

// Device memory that frees itself.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  explicit DeviceBytes(size_t bytes);
  DeviceBytes(const void* from, size_t bytes);
  ~DeviceBytes();
  DeviceBytes(DeviceBytes&& other) noexcept;
  DeviceBytes& operator=(DeviceBytes&& other) noexcept;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

void cuda_ok(cudaError_t status, const char* what);

class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, std::mt19937_64& random);

  // The operator's arguments, on the device. The output is poisoned.
  const AttentionArgs& args() const { return args_; }
  void poison();
  std::vector<uint16_t> output() const;

  // What the contract says for one row, computed on the host.
  std::vector<uint16_t> expected(int token, int head) const;
  // Its cost in dot16 steps.
  int64_t cost(int token) const;

  const AttentionShape& shape() const { return shape_; }
  int tokens() const { return tokens_; }
  int q_heads() const { return shape_.kv_heads * shape_.group; }

 private:
  AttentionShape shape_;
  int tokens_ = 0, table_stride_ = 0;
  std::vector<uint16_t> q_, k_, v_;  // k, v: widened
  std::vector<uint8_t> k8_, v8_;
  std::vector<float> k_scale_, v_scale_, sinks_;
  std::vector<int32_t> query_start_, kv_len_, table_, parent_;
  std::vector<uint64_t> mask_;
  int mask_stride_ = 0;
  DeviceBytes d_q_, d_k_, d_v_, d_k_scale_, d_v_scale_, d_sinks_, d_query_start_, d_kv_len_, d_table_, d_parent_,
      d_mask_, d_out_;
  AttentionArgs args_;
};

// One workspace for all cases, and the device's context.
cuda::KernelContext test_context();

// Compares sampled rows, at least `rows` of them and up to `budget` dot16 steps, by bytes; returns a description of the
// first difference. Every output must have been written.
std::optional<std::string> compare_sampled(const AttentionCase& c, const std::vector<uint16_t>& out, int rows,
                                           int64_t budget, std::mt19937_64& random);

}  // namespace isobit::test
