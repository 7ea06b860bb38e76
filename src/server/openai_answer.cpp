#include "server/openai_answer.h"

#include <ctime>

namespace isobit::server {
namespace {

class OpenAiGeneration final : public Generation {
 public:
  OpenAiGeneration(Serving& serving, CompletionRequest request, std::shared_ptr<HttpReply> reply, const std::string& id)
      : Generation(serving, std::move(request), std::move(reply), id), created_(std::time(nullptr)) {}

 private:
  void write_start(size_t index) override;
  void write_piece(size_t index, const std::string& text, bool last) override;
  void write_end() override;
  Json whole() override;

  Json choice_json(size_t index) const;
  Json logprobs_json(const Choice& choice, size_t from) const;
  Json chat_logprob(const TokenOutput& out) const;
  Json by_text(const TopLogprobs& top) const;
  Json text_logprobs(const Choice& choice, size_t from) const;
  Json envelope(bool chunk) const;
  Json usage() const;
  bool chat() const { return request().kind == CompletionKind::kChat; }

  int64_t created_;
};

void OpenAiGeneration::write_start(size_t index) {
  if (!chat()) return;
  Json chunk = envelope(true);
  chunk["choices"] = {
      {{"index", index}, {"delta", {{"role", "assistant"}, {"content", ""}}}, {"finish_reason", nullptr}}};
  send_event(chunk);
}

void OpenAiGeneration::write_end() {
  if (!request().stream_usage) return;
  Json last = envelope(true);
  last["choices"] = Json::array();
  last["usage"] = usage();
  send_event(last);
}

Json OpenAiGeneration::whole() {
  Json body = envelope(false);
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices().size(); i++) body["choices"].push_back(choice_json(i));
  body["usage"] = usage();
  return body;
}

Json OpenAiGeneration::envelope(bool chunk) const {
  const char* object = !chat() ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id()},
          {"object", object},
          {"created", created_},
          {"model", serving().model},
          {"system_fingerprint", serving().fingerprint},
          {"seed", request().sampling.seed}};
}

Json OpenAiGeneration::usage() const {
  int64_t prompt = 0, cached = 0, answer = 0;
  for (const auto& p : request().prompts) prompt += static_cast<int64_t>(p.size());
  for (const Choice& c : choices()) {
    answer += static_cast<int64_t>(c.tokens.size());
    cached += c.result.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", answer},
          {"total_tokens", prompt + answer},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

void OpenAiGeneration::write_piece(size_t index, const std::string& text, bool last) {
  Choice& c = choices()[index];
  Json choice = {{"index", index}};
  if (chat()) {
    choice["delta"] = text.empty() ? Json::object() : Json{{"content", text}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = logprobs_json(c, c.sent);
  c.sent = c.tokens.size();
  choice["finish_reason"] = last ? Json(finish_reason_name(c.reason)) : Json();
  if (last && request().receipt) choice["receipt"] = receipt_of(c, index);
  Json chunk = envelope(true);
  chunk["choices"] = Json::array({std::move(choice)});
  send_event(chunk);
}

Json OpenAiGeneration::choice_json(size_t index) const {
  const Choice& c = choices()[index];
  Json j = {{"index", index}};
  if (chat()) {
    j["message"] = {{"role", "assistant"}, {"content", c.shown}, {"refusal", nullptr}};
  } else {
    j["text"] = (request().echo ? serving().session.tokenizer().decode(prompt_of(c)) : "") + c.shown;
  }
  j["logprobs"] = logprobs_json(c, 0);
  j["finish_reason"] = finish_reason_name(c.reason);
  if (request().receipt) j["receipt"] = receipt_of(c, index);
  return j;
}

Json OpenAiGeneration::logprobs_json(const Choice& c, size_t from) const {
  if (!request().wants_logprobs()) return {};
  if (!chat()) return text_logprobs(c, from);
  Json content = Json::array();
  for (size_t i = from; i < c.tokens.size(); i++) content.push_back(chat_logprob(c.tokens[i]));
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json OpenAiGeneration::chat_logprob(const TokenOutput& out) const {
  const auto entry = [&](int32_t token, float logprob) {
    const std::string_view bytes = serving().session.tokenizer().token_bytes(token);
    Json numbers = Json::array();
    for (const char b : bytes) numbers.push_back(static_cast<unsigned char>(b));
    return Json{
        {"token", std::string(bytes)}, {"logprob", finite_logprob(logprob)}, {"bytes", numbers}, {"token_id", token}};
  };
  Json j = entry(out.token, out.logprob);
  j["top_logprobs"] = Json::array();
  for (const auto& [token, logprob] : out.top) j["top_logprobs"].push_back(entry(token, logprob));
  return j;
}

Json OpenAiGeneration::by_text(const TopLogprobs& top) const {
  Json values = Json::object();
  for (const auto& [token, logprob] : top)
    values[std::string(serving().session.tokenizer().token_bytes(token))] = finite_logprob(logprob);
  return values;
}

Json OpenAiGeneration::text_logprobs(const Choice& c, size_t from) const {
  Json tokens = Json::array(), values = Json::array(), top = Json::array(), offsets = Json::array();
  size_t offset = 0;
  const auto add = [&](int32_t token, Json value, Json best) {
    const std::string_view bytes = serving().session.tokenizer().token_bytes(token);
    tokens.push_back(std::string(bytes));
    values.push_back(std::move(value));
    top.push_back(std::move(best));
    offsets.push_back(offset);
    offset += bytes.size();
  };
  if (request().echo) {
    const auto& prompt = prompt_of(c);
    const std::vector<float>& scored = c.result.prompt_logprobs;  // of a request that ran out of time not all
    const std::vector<TopLogprobs>& ranked = c.result.prompt_top;
    for (size_t i = 0; i < prompt.size(); i++) {
      add(prompt[i], i == 0 || i > scored.size() ? Json() : Json(finite_logprob(scored[i - 1])),
          i == 0 || i > ranked.size() ? Json() : by_text(ranked[i - 1]));
    }
  }
  for (size_t i = from; i < c.tokens.size(); i++) {
    add(c.tokens[i].token, finite_logprob(c.tokens[i].logprob), by_text(c.tokens[i].top));
  }
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", top}, {"text_offset", offsets}};
}

}  // namespace

std::shared_ptr<Generation> openai_generation(Serving& serving, CompletionRequest request,
                                              std::shared_ptr<HttpReply> reply, const std::string& id) {
  const char* prefix = request.kind == CompletionKind::kChat ? "chatcmpl-" : "cmpl-";
  return std::make_shared<OpenAiGeneration>(serving, std::move(request), std::move(reply), prefix + id);
}

}  // namespace isobit::server
