#pragma once
// The sampler's slots in device memory. Settings are written when a slot is assigned or released, counts by the
// sampling kernel, so that a captured graph serves whatever the slots hold.
#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "numerics/sampling.h"
#include "ops/sampling.h"

namespace isobit::cuda {

struct SlotSettings {
  bool active, greedy, processed_logprobs, counts;
  bool has_min_p;
  int32_t top_k;         // 0: off
  int32_t top_logprobs;  // -1: none
  float inv_temperature;
  uint64_t top_p;    // top_p_threshold; 0: off
  float min_p_log2;  // min_p_threshold
  uint32_t choice;
  uint64_t seed;
  numerics::Penalties penalties;
  int32_t bias_count;
  // Null where nothing but temperature changes a logit. A token with a set bit in `touched` has a bias, or is in the
  // prompt or the output; bits as in bit (id mod 32) of word id / 32.
  uint32_t* touched;
  uint32_t* context;         // in the prompt or the output; counted for penalties only
  uint32_t* output_counts;   // [vocab]
  const int32_t* bias_ids;   // ascending
  const float* bias_values;  // of the same order
};

class CudaSamplerSlots final : public SamplerSlots {
 public:
  CudaSamplerSlots(int slots, int64_t vocab, cudaStream_t stream);
  void assign(int slot, const SamplingParams& params, std::span<const int32_t> prompt) override;
  void release(int slot) override;
  int slots() const override { return static_cast<int>(tables_.size()); }
  int64_t vocab() const override { return vocab_; }

  const SlotSettings* settings() const { return settings_.get(); }  // [slots]
  uint32_t* ticket() const { return words_.get(); }                 // 0 between launches
  const uint32_t* counting() const { return words_.get() + 1; }     // how many slots count their outputs

 private:
  struct CudaFree {
    void operator()(void* p) const { cudaFree(p); }
  };
  template <typename T>
  using DeviceArray = std::unique_ptr<T[], CudaFree>;
  template <typename T>
  static DeviceArray<T> allocate(size_t count);

  // What a slot needs beyond its settings, kept for the next sequence in it.
  struct Tables {
    DeviceArray<uint32_t> words;  // touched, context, output counts
    DeviceArray<int32_t> bias_ids;
    DeviceArray<float> bias_values;
    size_t bias_capacity = 0;
  };

  void check_slot(int slot) const;
  void fill_tables(Tables& tables, SlotSettings& s, const SamplingParams& params, std::span<const int32_t> prompt);
  void write(int slot, const SlotSettings& s);
  void use_device() const;
  size_t mask_words() const { return static_cast<size_t>((vocab_ + 31) / 32); }

  int64_t vocab_;
  int device_ = 0;
  cudaStream_t stream_;
  std::vector<Tables> tables_;
  DeviceArray<SlotSettings> settings_;
  std::vector<bool> counting_;   // by slot
  DeviceArray<uint32_t> words_;  // ticket, counting
};

}  // namespace isobit::cuda
