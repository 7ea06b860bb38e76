#pragma once
// How a model's publisher wants it sampled: generation_config.json of a folder, general.sampling.* of a GGUF file.
#include <optional>
#include <string>

#include "ops/sampling.h"
#include "weights/checkpoint.h"

namespace isobit {

// As vLLM reads them: what is stated replaces the neutral setting (temperature 1, no filter, no penalty), and what a
// request states goes before both.
struct SamplingDefaults {
  std::optional<float> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;

  bool empty() const { return !temperature && !top_p && !min_p && !repetition_penalty && !top_k; }
  // `base` with what is stated.
  SamplingParams over(SamplingParams base) const;
  // "temperature 1, top-k 64, top-p 0.95"; "" where nothing is stated.
  std::string describe() const;
};

// Throws Error kBadFile naming a value that is no number or out of its range.
SamplingDefaults read_sampling_defaults(const Checkpoint& file);

}  // namespace isobit
