#include "engine/digests.h"

#include <map>

#include "base/digest.h"
#include "base/error.h"

namespace isobit {
namespace {

struct Running {
  Digest logits, tokens;
  int32_t next = 0;  // the position whose logits come next
};

}  // namespace

Request verify_request(const VerifyPrompt& prompt, size_t index, bool sampled, const VerifyOptions& options) {
  Request r;
  r.prompt = prompt.tokens;
  r.stop_tokens = prompt.stop_tokens;
  r.max_tokens = options.decode_tokens;
  r.sampling.temperature = sampled ? 0.8f : 0.0f;
  if (sampled) {
    r.sampling.top_k = 40;
    r.sampling.top_p = 0.95f;
    r.sampling.min_p = 0.02f;
    r.sampling.repetition_penalty = 1.1f;
    r.sampling.seed = options.seed + index;
  }
  r.sampling.top_logprobs = 0;
  return r;
}

std::vector<PromptDigest> prompt_digests(Engine& engine, const std::vector<VerifyPrompt>& prompts,
                                         const VerifyOptions& options) {
  std::vector<PromptDigest> all(prompts.size());
  for (const bool sampled : {false, true}) {
    std::vector<Running> running(prompts.size());
    std::map<RequestId, size_t> prompt_of;
    for (size_t i = 0; i < prompts.size(); i++) {
      Request r = verify_request(prompts[i], i, sampled, options);
      r.on_logits = [&running, i](int32_t position, std::span<const float> logits) {
        if (position != running[i].next) return;  // computed again after a preemption
        running[i].next++;
        running[i].logits.add(logits.data(), logits.size_bytes());
      };
      r.on_token = [&running, i](const TokenOutput& t) { running[i].tokens.add(&t.token, sizeof t.token); };
      prompt_of[engine.submit(std::move(r))] = i;
    }
    engine.flush_prefix_cache();
    engine.run_until_idle();
    for (const auto& [id, i] : prompt_of) {
      const Result result = engine.take(id).value();
      if (result.reason == FinishReason::kError)
        throw fail(ErrorCode::kNumerical, "{}: {}", prompts[i].name, result.error);
      all[i].prompt = prompts[i].name;
      all[i].positions = running[i].next;
      // Not one assignment from braces to `sampled ? a : b`: g++ 12 compiles that to a null pointer at -O3.
      RunDigest& run = sampled ? all[i].seeded : all[i].greedy;
      run.logits = running[i].logits.hex();
      run.tokens = running[i].tokens.hex();
    }
  }
  return all;
}

}  // namespace isobit
