#pragma once
// SGLang's /generate, read and checked: text or input_ids, one or a list, with one set of sampling_params for all.
#include "server/completion_request.h"

namespace isobit::server {

// What shapes the answer alone.
struct SglangOptions {
  bool list = false;           // prompts came as a list, so do answers
  int32_t logprob_start = -1;  // input_token_logprobs begin here; -1: none
  bool text_in_logprobs = false;
};

CompletionRequest read_generate(const Json& body, const Session& session, const RequestLimits& limits,
                                SglangOptions& options);

}  // namespace isobit::server
