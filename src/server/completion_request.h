#pragma once
// /v1/chat/completions and /v1/completions, read and checked.
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "engine/session.h"
#include "server/fields.h"

namespace isobit::server {

enum class CompletionKind { kChat, kText };

struct CompletionRequest {
  CompletionKind kind = CompletionKind::kChat;
  std::vector<std::vector<int32_t>> prompts;
  SamplingParams sampling;
  bool seed_drawn = false;  // none was given
  int32_t n = 1;
  int32_t max_tokens = -1;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_tokens;  // beside the model's own
  bool ignore_eos = false;
  bool stream = false, stream_usage = false;
  bool echo = false;     // text completions: the prompt is part of the answer
  bool receipt = false;  // ours: a receipt for `isobit replay` in each choice
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
// The model named must be the one served, if one is named.
void check_model(const Fields& fields, const std::string& served);
std::vector<int32_t> read_conversation(const Fields& fields, const Session& session);

}  // namespace isobit::server
