#include "ops/cpu/sampler_slots.h"

#include "base/error.h"

namespace isobit::cpu {

CpuSamplerSlots::CpuSamplerSlots(int slots, int64_t vocab) : vocab_(vocab) {
  require(slots > 0, "make_sampler: {} slots; there must be at least one", slots);
  require(vocab > 0 && vocab <= numerics::kMaxVocabulary, "make_sampler: vocab is {}; it must be in [1, {}]", vocab,
          numerics::kMaxVocabulary);
  slots_.resize(static_cast<size_t>(slots));
}

void CpuSamplerSlots::check_slot(int slot) const {
  require(slot >= 0 && slot < slots(), "sampler slot {} does not exist; there are {}", slot, slots());
}

void CpuSamplerSlots::assign(int slot, const SamplingParams& params, std::span<const int32_t> prompt) {
  check_slot(slot);
  params.check(vocab_);
  for (const int32_t token : prompt) {
    require(token >= 0 && token < vocab_, "the prompt has token {}; the vocabulary has {}", token, vocab_);
  }
  SamplerSlot s;
  s.active = true;
  s.params = params;
  s.penalties = {params.repetition_penalty, params.presence_penalty, params.frequency_penalty};
  s.inv_temperature = params.temperature > 0.0f ? numerics::fdiv(1.0f, params.temperature) : 1.0f;
  for (const auto& [token, bias] : params.logit_bias) s.touched[token].bias = bias;
  if (s.penalties.repetition != 1.0f) {
    for (const int32_t token : prompt) s.touched[token].in_context = true;
  }
  slots_[static_cast<size_t>(slot)] = std::move(s);
}

void CpuSamplerSlots::release(int slot) {
  check_slot(slot);
  slots_[static_cast<size_t>(slot)] = SamplerSlot{};
}

const SamplerSlot& CpuSamplerSlots::at(int slot) const {
  check_slot(slot);
  const SamplerSlot& s = slots_[static_cast<size_t>(slot)];
  require(s.active, "sampler slot {} has no sequence; assign one first", slot);
  return s;
}

void CpuSamplerSlots::count_output(int slot, int32_t token) {
  SamplerSlot& s = slots_[static_cast<size_t>(slot)];
  if (!s.counts()) return;
  SamplerSlot::Touched& t = s.touched[token];
  t.in_context = true;
  t.output_count++;
}

}  // namespace isobit::cpu
