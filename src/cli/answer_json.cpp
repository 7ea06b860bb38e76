#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "numerics/contract.h"

namespace isobit::cli {

std::string json_text(const nlohmann::json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string answer_json(const Answer& a, const GenerateOptions& o, Session& session) {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  for (const TokenOutput& t : a.tokens) {
    tokens.push_back(t.token);
    logprobs.push_back(t.logprob);
  }
  const nlohmann::json j = {{"text", a.text},
                            {"finish_reason", finish_reason_name(a.reason)},
                            {"tokens", tokens},
                            {"logprobs", logprobs},
                            {"prompt_tokens", a.prompt_tokens},
                            {"cached_tokens", a.cached_tokens},
                            {"seed", o.sampling.seed},
                            {"first_token_s", a.first_token_s},
                            {"total_s", a.total_s},
                            {"tokens_per_second", a.tokens_per_second()},
                            {"load_s", session.load_seconds()},
                            {"model", session.engine().config().name},
                            {"model_digest", session.engine().file().digest()},
                            {"device", session.engine().backend().info().name},
                            {"contract", numerics::kContractVersion},
                            {"bits", a.digest}};
  return json_text(j);
}

}  // namespace isobit::cli
