#include "server/sglang_request.h"

#include <array>

namespace isobit::server {
namespace {

constexpr uint64_t kDefaultSeed = 42;       // SGLang's, where it is asked to be deterministic
constexpr int64_t kDefaultMaxTokens = 128;  // SGLang's

// What would change the answer and is not done here; neutral values are let through.
void refuse_unsupported(const Fields& body, const Fields& sampling) {
  for (const char* name : {"input_embeds", "image_data", "audio_data", "lora_path", "custom_logit_processor"}) {
    if (body.find(name) != nullptr) throw invalid(name, fmt::format("{} is not supported", name));
  }
  for (const char* name : {"stop_regex", "structural_tag", "custom_params"}) {
    if (sampling.find(name) != nullptr)
      throw invalid(sampling.path(name), fmt::format("{} is not supported", sampling.path(name)));
  }
  if (sampling.integer("min_new_tokens", 0, 0, INT32_MAX) != 0)
    throw invalid(sampling.path("min_new_tokens"), "sampling_params.min_new_tokens is not supported; leave it at 0");
}

void read_prompts(const Fields& fields, const Session& session, CompletionRequest& r, SglangOptions& options) {
  const Json* text = fields.find("text");
  const Json* ids = fields.find("input_ids");
  if ((text == nullptr) == (ids == nullptr)) throw invalid("text", "give either text or input_ids");
  const Json& given = text != nullptr ? *text : *ids;
  const std::string param = text != nullptr ? "text" : "input_ids";
  const auto read = [&](const Json& one) {
    if (text == nullptr) return read_tokens(one, param, session.tokenizer().vocab_size());
    if (!one.is_string()) throw invalid(param, "text must be a string or an array of strings");
    return session.text_prompt(one.get<std::string>());
  };
  options.list = given.is_array() && (text != nullptr || given.empty() || !given.front().is_number());
  if (!options.list) {
    r.prompts.push_back(read(given));
    return;
  }
  if (given.empty()) throw invalid(param, fmt::format("{} is empty; give at least one prompt", param));
  for (const Json& one : given) r.prompts.push_back(read(one));
}

void read_logprobs(const Fields& fields, CompletionRequest& r, SglangOptions& options) {
  const bool wanted = fields.flag("return_logprob", false);
  const int64_t top = fields.integer("top_logprobs_num", 0, 0, kMaxTopLogprobs);
  r.sampling.top_logprobs = wanted ? static_cast<int32_t>(top) : -1;
  options.logprob_start = static_cast<int32_t>(fields.integer("logprob_start_len", -1, -1, INT32_MAX));
  options.text_in_logprobs = fields.flag("return_text_in_logprobs", false);
  r.prompt_logprobs = wanted && options.logprob_start >= 0;
}

void read_sampling_params(const Fields& fields, const Session& session, CompletionRequest& r) {
  const int64_t vocab = session.tokenizer().vocab_size();
  const auto context = static_cast<int64_t>(session.options().context);
  r.sampling = session.sampling_defaults().over({});
  read_filters(fields, r.sampling);
  r.sampling.seed = read_seed(fields, "sampling_seed").value_or(kDefaultSeed);
  read_bias(fields, vocab, r.sampling);
  read_stops(fields, r);
  r.stop_tokens = fields.tokens("stop_token_ids", vocab);
  r.ignore_eos = fields.flag("ignore_eos", false);
  r.max_tokens =
      static_cast<int32_t>(fields.integer("max_new_tokens", std::min(kDefaultMaxTokens, context), 0, context));
  r.structured = read_structured(fields);
}

}  // namespace

CompletionRequest read_generate(const Json& body, const Session& session, const RequestLimits& limits,
                                SglangOptions& options) {
  const Fields fields(body);
  const Json none = Json::object();
  const Json* params = fields.find("sampling_params");
  if (params != nullptr && !params->is_object())
    throw invalid("sampling_params", "sampling_params must be one object; it holds for every prompt of the request");
  const Fields sampling(params != nullptr ? *params : none, "sampling_params.");
  refuse_unsupported(fields, sampling);
  CompletionRequest r;
  r.kind = CompletionKind::kSglang;
  read_prompts(fields, session, r, options);
  read_sampling_params(sampling, session, r);
  r.n = static_cast<int32_t>(sampling.integer("n", 1, 1, limits.choices));
  read_logprobs(fields, r, options);
  r.stream = fields.flag("stream", false);
  r.receipt = fields.flag("receipt", false);
  r.speculate = fields.flag("speculate", true);
  r.priority = static_cast<int32_t>(fields.integer("priority", 0, -kMaxPriority, kMaxPriority));
  check_choices(r, limits);
  return r;
}

}  // namespace isobit::server
