#pragma once
// A request for completions, read and checked, whichever interface it came by.
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "engine/session.h"
#include "server/fields.h"
#include "server/structured.h"

namespace isobit::server {

enum class CompletionKind { kChat, kText, kSglang };

struct CompletionRequest {
  CompletionKind kind = CompletionKind::kChat;
  std::vector<std::vector<int32_t>> prompts;
  SamplingParams sampling;
  int32_t n = 1;
  int32_t max_tokens = -1;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_tokens;  // beside the model's own
  bool ignore_eos = false;
  bool stream = false, stream_usage = false;
  bool echo = false;  // text completions: the prompt is part of the answer
  bool prompt_logprobs = false;
  std::optional<StructuredOutput> structured;
  std::shared_ptr<const Grammar> grammar;  // of it, once compiled
  bool receipt = false;                    // ours: a receipt for `isobit replay` in each choice
  bool speculate = true;
  int32_t priority = 0;
  std::optional<std::chrono::milliseconds> timeout;

  bool wants_logprobs() const { return sampling.top_logprobs >= 0; }
};

struct RequestLimits {
  int32_t choices = 64;  // prompts × n of one request
  std::string model;     // the one served
};

// Throws ApiError naming the parameter; texts are tokenized, conversations go through the model's template.
CompletionRequest read_completion(CompletionKind kind, const Json& body, const Session& session,
                                  const RequestLimits& limits);
// What the interfaces share. A string or an array of strings; token ids; logit_bias of either.
void read_stops(const Fields& fields, CompletionRequest& request);
void read_bias(const Fields& fields, int64_t vocab, SamplingParams& sampling);
// Any 64 bits, signed or not.
std::optional<uint64_t> read_seed(const Fields& fields, const std::string& name);
// Temperature, top_p and what else shapes the distribution; what is absent stays as it is.
void read_filters(const Fields& fields, SamplingParams& sampling);
void check_choices(const CompletionRequest& request, const RequestLimits& limits);
// The model named must be the one served, if one is named.
void check_model(const Fields& fields, const std::string& served);
std::vector<int32_t> read_conversation(const Fields& fields, const Session& session);

}  // namespace isobit::server
