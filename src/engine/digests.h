#pragma once
// One line of digests a prompt: what two machines compare without moving logits.
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/verify.h"

namespace isobit {

struct RunDigest {
  std::string logits;  // of every computed position's logits, prompt and answer, ascending
  std::string tokens;  // of the answer's tokens
  bool operator==(const RunDigest&) const = default;
};

struct PromptDigest {
  std::string prompt;
  int32_t positions = 0;  // logit rows in each run
  RunDigest greedy, seeded;
  bool operator==(const PromptDigest&) const = default;
};

// Runs the prompts through the engine, greedy and with seeds (options.seed + index), options.decode_tokens each; the
// engine's batch, chunks and cache may be anything. Throws Error if a request fails.
std::vector<PromptDigest> prompt_digests(Engine& engine, const std::vector<VerifyPrompt>& prompts,
                                         const VerifyOptions& options);

// The request that verification makes of a prompt.
Request verify_request(const VerifyPrompt& prompt, size_t index, bool sampled, const VerifyOptions& options);

}  // namespace isobit
