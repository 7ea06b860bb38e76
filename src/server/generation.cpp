#include "server/generation.h"

#include <cmath>
#include <ctime>

#include "engine/receipt.h"

namespace isobit::server {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// JSON has no infinities; OpenAI's servers write a very small number.
double finite(float logprob) { return std::isfinite(logprob) ? static_cast<double>(logprob) : -9999.0; }

std::string_view reason_name(FinishReason reason) { return finish_reason_name(reason); }

}  // namespace

Generation::Generation(Serving& serving, CompletionRequest request, std::shared_ptr<HttpReply> reply,
                       const std::string& id)
    : serving_(serving),
      request_(std::move(request)),
      reply_(std::move(reply)),
      id_((chat() ? "chatcmpl-" : "cmpl-") + id),
      created_(std::time(nullptr)),
      arrived_(Clock::now()) {}

Request Generation::make_request(const Choice& choice, uint32_t index) const {
  Request r;
  r.prompt = request_.prompts[choice.prompt];
  r.sampling = request_.sampling;
  r.sampling.choice = index % static_cast<uint32_t>(request_.n);
  r.max_tokens = request_.max_tokens;
  if (!request_.ignore_eos) r.stop_tokens = serving_.session.stop_tokens();
  r.stop_tokens.insert(r.stop_tokens.end(), request_.stop_tokens.begin(), request_.stop_tokens.end());
  r.priority = request_.priority;
  r.prompt_logprobs = request_.echo && request_.wants_logprobs();
  r.digest_logits = request_.receipt;
  r.speculate = request_.speculate;
  if (request_.timeout) r.deadline = arrived_ + *request_.timeout;
  return r;
}

void Generation::start() {
  for (size_t p = 0; p < request_.prompts.size(); p++) {
    for (int32_t i = 0; i < request_.n; i++) choices_.emplace_back(serving_.session.tokenizer(), request_).prompt = p;
  }
  for (const Choice& c : choices_) serving_.engine.engine().check(make_request(c, 0));
  const auto self = shared_from_this();
  reply_->on_gone([weak = std::weak_ptr(self)] {
    if (const auto g = weak.lock()) {
      g->serving_.metrics.gone++;
      g->over_ = true;
      g->cancel_all();
    }
  });
  if (request_.stream) reply_->start_events();
  HttpServer& http = serving_.http;
  for (size_t i = 0; i < choices_.size(); i++) {
    Request r = make_request(choices_[i], static_cast<uint32_t>(i));
    serving_.metrics.prompt_tokens += static_cast<int64_t>(r.prompt.size());
    r.on_token = [&http, self, i](const TokenOutput& out) { http.post([self, i, out] { self->on_token(i, out); }); };
    r.on_finish = [&http, self, i](Result&& result) {
      http.post([self, i, kept = std::move(result)]() mutable { self->on_finish(i, std::move(kept)); });
    };
    open_++;
    choices_[i].id = serving_.engine.submit(std::move(r));
    if (request_.stream && chat()) {
      Json chunk = envelope(true);
      chunk["choices"] = {
          {{"index", i}, {"delta", {{"role", "assistant"}, {"content", ""}}}, {"finish_reason", nullptr}}};
      reply_->event(to_text(chunk));
    }
  }
}

void Generation::cancel_all() {
  for (const Choice& c : choices_) {
    if (!c.done && c.id != 0) serving_.engine.cancel(c.id);
  }
}

void Generation::on_token(size_t index, const TokenOutput& out) {
  Choice& c = choices_[index];
  if (over_ || c.text.stopped()) return;  // what was on its way when the text ended
  serving_.metrics.generated_tokens++;
  if (c.tokens.empty()) {
    serving_.metrics.first_token.add(since(arrived_));
  } else {
    serving_.metrics.inter_token.add(since(c.last));
  }
  c.last = Clock::now();
  c.tokens.push_back(out);
  const std::string text = c.text.push(out.token);
  if (request_.stream) {
    if (!text.empty()) send_chunk(index, text, false);
  } else {
    c.shown += text;
  }
  if (c.text.stopped()) serving_.engine.cancel(c.id);
}

void Generation::on_finish(size_t index, Result&& result) {
  Choice& c = choices_[index];
  c.done = true;
  open_--;
  if (over_) return;
  if (result.reason == FinishReason::kError) return fail(result.error);
  c.reason = c.text.stopped() ? FinishReason::kStop : result.reason;
  c.result = std::move(result);
  const std::string text = c.text.flush();
  if (request_.stream) {
    send_chunk(index, text, true);
  } else {
    c.shown += text;
  }
  if (open_ == 0) complete();
}

void Generation::complete() {
  over_ = true;
  serving_.metrics.request.add(since(arrived_));
  if (request_.stream) {
    if (request_.stream_usage) {
      Json last = envelope(true);
      last["choices"] = Json::array();
      last["usage"] = usage();
      reply_->event(to_text(last));
    }
    reply_->event("[DONE]");
    reply_->end_events();
    return;
  }
  Json body = envelope(false);
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices_.size(); i++) body["choices"].push_back(choice_json(i));
  body["usage"] = usage();
  reply_->send(200, "application/json", to_text(body), {});
}

void Generation::fail(const std::string& message) {
  over_ = true;
  cancel_all();
  const ApiError error(500, "server_error", message);
  if (request_.stream) {
    reply_->event(to_text(error.body()));
    reply_->end_events();
  } else {
    reply_->send(500, "application/json", to_text(error.body()), {});
  }
}

Json Generation::envelope(bool chunk) const {
  const char* object = !chat() ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", serving_.model},
          {"system_fingerprint", serving_.fingerprint},
          {"seed", request_.sampling.seed}};
}

Json Generation::usage() const {
  int64_t prompt = 0, cached = 0, answer = 0;
  for (const auto& p : request_.prompts) prompt += static_cast<int64_t>(p.size());
  for (const Choice& c : choices_) {
    answer += static_cast<int64_t>(c.tokens.size());
    cached += c.result.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", answer},
          {"total_tokens", prompt + answer},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

void Generation::send_chunk(size_t index, const std::string& text, bool last) {
  Choice& c = choices_[index];
  Json choice = {{"index", index}};
  if (chat()) {
    choice["delta"] = text.empty() ? Json::object() : Json{{"content", text}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = logprobs_json(c, c.sent);
  c.sent = c.tokens.size();
  choice["finish_reason"] = last ? Json(reason_name(c.reason)) : Json();
  if (last && request_.receipt) choice["receipt"] = receipt_of(c, index);
  Json chunk = envelope(true);
  chunk["choices"] = Json::array({std::move(choice)});
  reply_->event(to_text(chunk));
}

Json Generation::choice_json(size_t index) const {
  const Choice& c = choices_[index];
  Json j = {{"index", index}};
  if (chat()) {
    j["message"] = {{"role", "assistant"}, {"content", c.shown}, {"refusal", nullptr}};
  } else {
    j["text"] = (request_.echo ? serving_.session.tokenizer().decode(request_.prompts[c.prompt]) : "") + c.shown;
  }
  j["logprobs"] = logprobs_json(c, 0);
  j["finish_reason"] = reason_name(c.reason);
  if (request_.receipt) j["receipt"] = receipt_of(c, index);
  return j;
}

Json Generation::receipt_of(const Choice& choice, size_t index) const {
  Receipt r = make_receipt(serving_.engine.engine(), make_request(choice, static_cast<uint32_t>(index)), choice.tokens);
  r.device = serving_.session.device();
  return Json::parse(receipt_json(r));
}

Json Generation::logprobs_json(const Choice& c, size_t from) const {
  if (!request_.wants_logprobs()) return {};
  if (!chat()) return text_logprobs(c, from);
  Json content = Json::array();
  for (size_t i = from; i < c.tokens.size(); i++) content.push_back(chat_logprob(c.tokens[i]));
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json Generation::chat_logprob(const TokenOutput& out) const {
  const auto entry = [&](int32_t token, float logprob) {
    const std::string_view bytes = serving_.session.tokenizer().token_bytes(token);
    Json numbers = Json::array();
    for (const char b : bytes) numbers.push_back(static_cast<unsigned char>(b));
    return Json{{"token", std::string(bytes)}, {"logprob", finite(logprob)}, {"bytes", numbers}, {"token_id", token}};
  };
  Json j = entry(out.token, out.logprob);
  j["top_logprobs"] = Json::array();
  for (const auto& [token, logprob] : out.top) j["top_logprobs"].push_back(entry(token, logprob));
  return j;
}

Json Generation::text_logprobs(const Choice& c, size_t from) const {
  Json tokens = Json::array(), values = Json::array(), top = Json::array(), offsets = Json::array();
  size_t offset = 0;
  const auto add = [&](int32_t token, Json value, Json best) {
    const std::string_view bytes = serving_.session.tokenizer().token_bytes(token);
    tokens.push_back(std::string(bytes));
    values.push_back(std::move(value));
    top.push_back(std::move(best));
    offsets.push_back(offset);
    offset += bytes.size();
  };
  if (request_.echo) {
    const auto& prompt = request_.prompts[c.prompt];
    const std::vector<float>& scored = c.result.prompt_logprobs;  // of a request that ran out of time not all
    for (size_t i = 0; i < prompt.size(); i++)
      add(prompt[i], i == 0 || i > scored.size() ? Json() : Json(finite(scored[i - 1])), Json());
  }
  for (size_t i = from; i < c.tokens.size(); i++) {
    Json best = Json::object();
    for (const auto& [token, logprob] : c.tokens[i].top)
      best[std::string(serving_.session.tokenizer().token_bytes(token))] = finite(logprob);
    add(c.tokens[i].token, finite(c.tokens[i].logprob), std::move(best));
  }
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", top}, {"text_offset", offsets}};
}

}  // namespace isobit::server
