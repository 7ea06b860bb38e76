#pragma once
// What a caller asks of the engine, and what comes back.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ops/sampling.h"

namespace isobit {

using RequestId = uint64_t;

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", …

struct TokenOutput {
  RequestId request = 0;
  int32_t position = 0;  // in the sequence, prompt counted
  int32_t token = 0;
  float logprob = 0.0f;                        // NaN unless asked for
  std::vector<std::pair<int32_t, float>> top;  // best first
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  int32_t max_tokens = -1;                           // -1: until the context is full
  std::vector<int32_t> stop_tokens;                  // end the answer; such a token is reported like any other
  int32_t priority = 0;                              // larger first; equal: first come
  bool prompt_logprobs = false;                      // log-probability of every prompt token but the first
  std::function<void(const TokenOutput&)> on_token;  // called from Engine::step
  // Every computed position's logits, as soon as they are made; slow, for verification. Position i predicts token i
  // + 1.
  std::function<void(int32_t position, std::span<const float> logits)> on_logits;
};

struct Result {
  RequestId request = 0;
  FinishReason reason = FinishReason::kNone;
  std::string error;  // kError: what happened
  std::vector<TokenOutput> tokens;
  std::vector<float> prompt_logprobs;  // [prompt - 1], of tokens 1, 2, …
  std::vector<int32_t> prompt_best;    // [prompt - 1], the argmax at those places
  int32_t cached_tokens = 0;           // prompt tokens found in the prefix cache
};

}  // namespace isobit
