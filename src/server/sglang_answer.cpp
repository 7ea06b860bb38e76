#include "server/sglang_answer.h"

#include <algorithm>

namespace isobit::server {
namespace {

// A stream's events hold the whole answer so far, as SGLang's do; a list's say by `index` whose they are.
class SglangGeneration final : public Generation {
 public:
  SglangGeneration(Serving& serving, CompletionRequest request, const SglangOptions& options,
                   std::shared_ptr<HttpReply> reply, const std::string& id)
      : Generation(serving, std::move(request), std::move(reply), id), options_(options) {}

 private:
  void write_start(size_t /*index*/) override {}
  void write_piece(size_t index, const std::string& /*text*/, bool /*last*/) override {
    Json event = choice_json(index);
    if (many()) event["index"] = index;
    send_event(event);
  }
  void write_end() override {}
  Json whole() override {
    if (!many()) return choice_json(0);
    Json all = Json::array();
    for (size_t i = 0; i < choices().size(); i++) all.push_back(choice_json(i));
    return all;
  }

  bool many() const { return options_.list || choices().size() > 1; }
  Json choice_json(size_t index) const;
  Json finish_reason(const Choice& choice) const;
  Json input_logprobs(const Choice& choice) const;
  Json input_top(const Choice& choice) const;
  void add_logprobs(const Choice& choice, Json& meta) const;
  Json entries(const TopLogprobs& top) const;
  Json entry(int32_t token, Json logprob) const;

  SglangOptions options_;
};

Json SglangGeneration::choice_json(size_t index) const {
  const Choice& c = choices()[index];
  Json ids = Json::array();
  for (const TokenOutput& t : c.tokens) ids.push_back(t.token);
  Json meta = {{"id", many() ? fmt::format("{}-{}", id(), index) : id()},
               {"finish_reason", finish_reason(c)},
               {"prompt_tokens", prompt_of(c).size()},
               {"completion_tokens", c.tokens.size()},
               {"cached_tokens", c.result.cached_tokens},
               {"weight_version", serving().fingerprint},
               {"e2e_latency", seconds()}};
  if (request().wants_logprobs()) add_logprobs(c, meta);
  Json j = {{"text", c.shown}, {"output_ids", std::move(ids)}, {"meta_info", std::move(meta)}};
  if (c.done && request().receipt) j["receipt"] = receipt_of(c, index);
  return j;
}

Json SglangGeneration::finish_reason(const Choice& c) const {
  if (!c.done) return nullptr;
  const std::string_view name = finish_reason_name(c.reason);
  if (c.reason == FinishReason::kLength) return {{"type", name}, {"length", c.tokens.size()}};
  if (c.reason != FinishReason::kStop) return {{"type", "abort"}, {"message", name}};
  if (c.text.stopped()) return {{"type", name}, {"matched", c.text.matched()}};
  return {{"type", name}, {"matched", c.tokens.empty() ? Json() : Json(c.tokens.back().token)}};
}

// Triples of log-probability, token id, and the token's text where that was asked for.
Json SglangGeneration::entry(int32_t token, Json logprob) const {
  return Json::array(
      {std::move(logprob), token,
       options_.text_in_logprobs ? Json(std::string(serving().session.tokenizer().token_bytes(token))) : Json()});
}

// The first token of a text has none; of a request that ran out of time the last ones may not either.
Json SglangGeneration::input_logprobs(const Choice& c) const {
  Json input = Json::array();
  if (!request().prompt_logprobs) return input;
  const auto& prompt = prompt_of(c);
  const std::vector<float>& scored = c.result.prompt_logprobs;  // of tokens 1, 2, …
  for (auto i = static_cast<size_t>(options_.logprob_start); i < prompt.size(); i++)
    input.push_back(entry(prompt[i], i == 0 || i > scored.size() ? Json() : Json(finite_logprob(scored[i - 1]))));
  return input;
}

// Beside input_logprobs: the likeliest tokens at those places.
Json SglangGeneration::input_top(const Choice& c) const {
  Json input = Json::array();
  if (!request().prompt_logprobs) return input;
  const std::vector<TopLogprobs>& ranked = c.result.prompt_top;  // at tokens 1, 2, …
  for (auto i = static_cast<size_t>(options_.logprob_start); i < prompt_of(c).size(); i++)
    input.push_back(i == 0 || i > ranked.size() ? Json() : entries(ranked[i - 1]));
  return input;
}

Json SglangGeneration::entries(const TopLogprobs& top) const {
  Json all = Json::array();
  for (const auto& [token, logprob] : top) all.push_back(entry(token, finite_logprob(logprob)));
  return all;
}

void SglangGeneration::add_logprobs(const Choice& c, Json& meta) const {
  Json output = Json::array(), top = Json::array();
  for (const TokenOutput& t : c.tokens) {
    output.push_back(entry(t.token, finite_logprob(t.logprob)));
    top.push_back(entries(t.top));
  }
  if (c.done) meta["input_token_logprobs"] = input_logprobs(c);
  meta["output_token_logprobs"] = std::move(output);
  if (request().sampling.top_logprobs == 0) return;
  if (c.done) meta["input_top_logprobs"] = input_top(c);
  meta["output_top_logprobs"] = std::move(top);
}

}  // namespace

std::shared_ptr<Generation> sglang_generation(Serving& serving, CompletionRequest request, const SglangOptions& options,
                                              std::shared_ptr<HttpReply> reply, const std::string& id) {
  return std::make_shared<SglangGeneration>(serving, std::move(request), options, std::move(reply), id);
}

}  // namespace isobit::server
