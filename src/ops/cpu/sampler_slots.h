#pragma once
// The settings and counts of the sequences in the sampler's slots.
#include <unordered_map>
#include <vector>

#include "numerics/sampling.h"
#include "ops/sampling.h"

namespace isobit::cpu {

struct SamplerSlot {
  // What makes a token's logit differ from its raw value, temperature apart.
  struct Touched {
    float bias = 0.0f;
    bool in_context = false;
    int32_t output_count = 0;
  };

  bool active = false;
  SamplingParams params;
  numerics::Penalties penalties;
  float inv_temperature = 1.0f;
  std::unordered_map<int32_t, Touched> touched;  // empty where nothing but temperature is set

  bool counts() const { return penalties.repetition != 1.0f || counts_output(); }
  bool counts_output() const { return penalties.presence != 0.0f || penalties.frequency != 0.0f; }
  float process(float y, const Touched& t) const {
    return numerics::process_logit(y, t.bias, penalties, t.in_context, t.output_count, inv_temperature);
  }
};

struct SamplerScratch {  // of one thread
  std::vector<float> processed, filtered;
  std::vector<int32_t> drafted;
};

class CpuSamplerSlots final : public SamplerSlots {
 public:
  CpuSamplerSlots(int slots, int64_t vocab);
  void assign(int slot, const SamplingParams& params, std::span<const int32_t> prompt) override;
  void release(int slot) override;
  int slots() const override { return static_cast<int>(slots_.size()); }
  int64_t vocab() const override { return vocab_; }

  // The slot of a row; throws Error where there is none or nothing was assigned to it.
  const SamplerSlot& at(int slot) const;
  void count_output(int slot, int32_t token);
  std::vector<SamplerScratch>& scratch(int threads) {
    if (scratch_.size() < static_cast<size_t>(threads)) scratch_.resize(static_cast<size_t>(threads));
    return scratch_;
  }

 private:
  void check_slot(int slot) const;

  int64_t vocab_;
  std::vector<SamplerSlot> slots_;
  std::vector<SamplerScratch> scratch_;
};

}  // namespace isobit::cpu
