#pragma once
// What a caller asks of the engine, and what comes back.
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "grammar/grammar.h"
#include "ops/sampling.h"

namespace isobit {

using RequestId = uint64_t;

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kDeadline, kError };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", …

using TopLogprobs = std::vector<std::pair<int32_t, float>>;  // tokens, the likeliest first

struct TokenOutput {
  RequestId request = 0;
  int32_t position = 0;  // in the sequence, prompt counted
  int32_t token = 0;
  float logprob = 0.0f;  // NaN unless asked for
  TopLogprobs top;
  uint64_t logits_digest = 0;  // of this answer's rows of logits so far, where asked for
};

struct Result;

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  std::shared_ptr<const Grammar> grammar;  // what the answer's text must be, if anything; the answer ends where it does
  int32_t max_tokens = -1;                 // -1: until the context is full
  std::vector<int32_t> stop_tokens;        // end the answer; such a token is reported like any other
  int32_t priority = 0;                    // larger first; equal: first come; in [-kMaxPriority, kMaxPriority]
  bool prompt_logprobs = false;  // of every prompt token but the first, and the likeliest there, as sampling's
  bool digest_logits = false;    // TokenOutput::logits_digest, for receipts; each row of logits is read back
  bool speculate = true;         // allow drafts, where the engine makes any; the answer is the same either way
  // Ends the request, wherever it is, at the first step after this moment; what was made until then is its result.
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::function<void(const TokenOutput&)> on_token;  // called from Engine::step
  std::function<void(Result&&)> on_finish;           // likewise; Engine::take then has nothing
  // For verification, and slow: every computed position's row of the residual stream behind the last layer, and its
  // logits (position i predicts token i + 1) from position `logits_from` on. Those that a token was sampled from are
  // the sampler's own; others are made for this.
  std::function<void(int32_t position, std::span<const float> residual)> on_residual;
  std::function<void(int32_t position, std::span<const float> logits)> on_logits;
  int32_t logits_from = 0;
};

constexpr int32_t kMaxPriority = 1000;

struct Result {
  RequestId request = 0;
  FinishReason reason = FinishReason::kNone;
  std::string error;  // kError: what happened
  std::vector<TokenOutput> tokens;
  std::vector<float> prompt_logprobs;   // [prompt - 1], of tokens 1, 2, …
  std::vector<int32_t> prompt_best;     // [prompt - 1], the argmax at those places
  std::vector<TopLogprobs> prompt_top;  // [prompt - 1], where SamplingParams::top_logprobs is positive
  int32_t cached_tokens = 0;            // prompt tokens found in the prefix cache
  int32_t preemptions = 0;              // times it gave its pages up and was computed again
  int32_t drafted = 0, accepted = 0;    // tokens proposed by speculation, and those that were right
};

}  // namespace isobit
