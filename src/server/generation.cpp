#include "server/generation.h"

#include <cmath>

#include "base/log.h"
#include "engine/receipt.h"

namespace isobit::server {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

double finite_logprob(float logprob) { return std::isfinite(logprob) ? static_cast<double>(logprob) : -9999.0; }

Generation::Generation(Serving& serving, CompletionRequest request, std::shared_ptr<HttpReply> reply, std::string id)
    : serving_(serving),
      request_(std::move(request)),
      reply_(std::move(reply)),
      id_(std::move(id)),
      arrived_(Clock::now()) {}

double Generation::seconds() const { return since(arrived_); }

Request Generation::make_request(const Choice& choice, uint32_t index) const {
  Request r;
  r.prompt = request_.prompts[choice.prompt];
  r.sampling = request_.sampling;
  r.sampling.choice = index % static_cast<uint32_t>(request_.n);
  r.max_tokens = request_.max_tokens;
  if (!request_.ignore_eos) r.stop_tokens = serving_.session.stop_tokens();
  r.stop_tokens.insert(r.stop_tokens.end(), request_.stop_tokens.begin(), request_.stop_tokens.end());
  r.priority = request_.priority;
  r.grammar = request_.grammar;
  r.prompt_logprobs = request_.prompt_logprobs;
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
      g->log_end("the client went away");
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
    if (request_.stream) write_start(i);
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
  c.shown += text;
  if (request_.stream && !text.empty()) write_piece(index, text, false);
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
  c.shown += text;
  if (request_.stream) write_piece(index, text, true);
  if (open_ == 0) complete();
}

void Generation::complete() {
  over_ = true;
  serving_.metrics.request.add(since(arrived_));
  log_end("complete");
  if (request_.stream) {
    write_end();
    reply_->event("[DONE]");
    reply_->end_events();
    return;
  }
  reply_->send(200, "application/json", to_text(whole()), {});
}

void Generation::fail(const std::string& message) {
  over_ = true;
  cancel_all();
  spdlog::error("request {}: {}", id_, message);
  const ApiError error(500, "server_error", message);
  if (request_.stream) {
    reply_->event(to_text(error.body()));
    reply_->end_events();
  } else {
    reply_->send(500, "application/json", to_text(error.body()), {});
  }
}

void Generation::log_end(const char* how) const {
  size_t prompt = 0, answer = 0;
  for (const auto& p : request_.prompts) prompt += p.size();
  for (const Choice& c : choices_) answer += c.tokens.size();
  spdlog::info("request {}: {}, {} choices, {} tokens in, {} out, {:.3f} s", id_, how, choices_.size(), prompt, answer,
               since(arrived_));
}

Json Generation::receipt_of(const Choice& choice, size_t index) const {
  Receipt r = make_receipt(serving_.engine.engine(), make_request(choice, static_cast<uint32_t>(index)), choice.tokens);
  r.device = serving_.session.device();
  return Json::parse(receipt_json(r));
}

}  // namespace isobit::server
