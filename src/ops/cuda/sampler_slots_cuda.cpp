#include "ops/cuda/sampler_slots_cuda.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"

namespace isobit::cuda {

template <typename T>
CudaSamplerSlots::DeviceArray<T> CudaSamplerSlots::allocate(size_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, count * sizeof(T)), "memory of the sampler's slots");
  return DeviceArray<T>(static_cast<T*>(p));
}

CudaSamplerSlots::CudaSamplerSlots(int slots, int64_t vocab, cudaStream_t stream) : vocab_(vocab), stream_(stream) {
  require(slots > 0, "make_sampler: {} slots; there must be at least one", slots);
  require(vocab > 0 && vocab <= numerics::kMaxVocabulary, "make_sampler: vocab is {}; it must be in [1, {}]", vocab,
          numerics::kMaxVocabulary);
  check(cudaGetDevice(&device_), "sampler slots");
  tables_.resize(static_cast<size_t>(slots));
  settings_ = allocate<SlotSettings>(tables_.size());
  counting_.resize(tables_.size());
  words_ = allocate<uint32_t>(2);
  check(cudaMemsetAsync(settings_.get(), 0, tables_.size() * sizeof(SlotSettings), stream_), "sampler slots");
  check(cudaMemsetAsync(words_.get(), 0, 2 * sizeof(uint32_t), stream_), "sampler slots");
}

void CudaSamplerSlots::check_slot(int slot) const {
  require(slot >= 0 && slot < slots(), "sampler slot {} does not exist; there are {}", slot, slots());
}

// Tables are allocated when a slot first needs them, by whatever thread assigns it.
void CudaSamplerSlots::use_device() const { check(cudaSetDevice(device_), "choosing the GPU of the sampler's slots"); }

// Copies from pageable memory have left their source when the call returns.
void CudaSamplerSlots::write(int slot, const SlotSettings& s) {
  check(cudaMemcpyAsync(settings_.get() + slot, &s, sizeof(s), cudaMemcpyHostToDevice, stream_), "sampler slot");
  if (counting_[static_cast<size_t>(slot)] == s.counts) return;
  counting_[static_cast<size_t>(slot)] = s.counts;
  const auto count = static_cast<uint32_t>(std::count(counting_.begin(), counting_.end(), true));
  check(cudaMemcpyAsync(words_.get() + 1, &count, sizeof(count), cudaMemcpyHostToDevice, stream_), "sampler slot");
}

void CudaSamplerSlots::fill_tables(Tables& tables, SlotSettings& s, const SamplingParams& params,
                                   std::span<const int32_t> prompt) {
  std::map<int32_t, float> bias;
  for (const auto& [token, value] : params.logit_bias) bias[token] = value;
  if (!s.counts && bias.empty()) return;
  const size_t words = mask_words();
  if (!tables.words) tables.words = allocate<uint32_t>(2 * words + static_cast<size_t>(vocab_));
  std::vector<uint32_t> masks(2 * words);
  const auto set = [&](size_t mask, int32_t token) {
    masks[mask * words + static_cast<size_t>(token / 32)] |= 1u << (token % 32);
  };
  std::vector<int32_t> ids;
  std::vector<float> values;
  for (const auto& [token, value] : bias) {
    set(0, token);
    ids.push_back(token);
    values.push_back(value);
  }
  if (s.penalties.repetition != 1.0f) {
    for (const int32_t token : prompt) set(0, token), set(1, token);
  }
  const auto upload = [&](void* to, const void* from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "sampler slot");
  };
  s.touched = tables.words.get();
  s.context = s.touched + words;
  s.output_counts = s.context + words;
  upload(s.touched, masks.data(), masks.size() * sizeof(uint32_t));
  check(cudaMemsetAsync(s.output_counts, 0, static_cast<size_t>(vocab_) * sizeof(uint32_t), stream_), "sampler slot");
  if (!ids.empty()) {
    if (ids.size() > tables.bias_capacity) {
      tables.bias_ids = allocate<int32_t>(ids.size());
      tables.bias_values = allocate<float>(ids.size());
      tables.bias_capacity = ids.size();
    }
    upload(tables.bias_ids.get(), ids.data(), ids.size() * sizeof(int32_t));
    upload(tables.bias_values.get(), values.data(), values.size() * sizeof(float));
    s.bias_count = static_cast<int32_t>(ids.size());
    s.bias_ids = tables.bias_ids.get();
    s.bias_values = tables.bias_values.get();
  }
}

void CudaSamplerSlots::assign(int slot, const SamplingParams& params, std::span<const int32_t> prompt) {
  check_slot(slot);
  use_device();
  params.check(vocab_);
  for (const int32_t token : prompt) {
    require(token >= 0 && token < vocab_, "the prompt has token {}; the vocabulary has {}", token, vocab_);
  }
  SlotSettings s = {};
  s.active = true;
  s.greedy = params.temperature == 0.0f;
  s.processed_logprobs = params.processed_logprobs;
  s.top_k = params.top_k > 0 && params.top_k < vocab_ ? params.top_k : 0;
  s.top_logprobs = params.top_logprobs;
  s.inv_temperature = s.greedy ? 1.0f : numerics::fdiv(1.0f, params.temperature);
  s.top_p = params.top_p < 1.0f ? numerics::top_p_threshold(params.top_p) : 0;
  s.has_min_p = params.min_p > 0.0f;
  s.min_p_log2 = s.has_min_p ? numerics::min_p_threshold(params.min_p) : 0.0f;
  s.choice = params.choice;
  s.seed = params.seed;
  s.penalties = {params.repetition_penalty, params.presence_penalty, params.frequency_penalty};
  s.counts = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
  fill_tables(tables_[static_cast<size_t>(slot)], s, params, prompt);
  write(slot, s);
}

void CudaSamplerSlots::release(int slot) {
  check_slot(slot);
  use_device();
  write(slot, SlotSettings{});
}

std::unique_ptr<SamplerSlots> make_sampler_slots(int slots, int64_t vocab, const KernelContext& context) {
  return std::make_unique<CudaSamplerSlots>(slots, vocab, context.stream);
}

}  // namespace isobit::cuda
