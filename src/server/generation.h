#pragma once
// One request for completions under way: its choices run in the engine, their tokens come back as text, as one body or
// as a stream. Lives on the server's thread.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "engine/answer_text.h"
#include "engine/engine_thread.h"
#include "server/completion_request.h"
#include "server/http_server.h"
#include "server/metrics.h"

namespace isobit::server {

// What the routes share.
struct Serving {
  Session& session;
  EngineThread& engine;
  HttpServer& http;
  Metrics& metrics;
  std::string model;        // as clients name it
  std::string fingerprint;  // contract version, model digest and what it is computed in
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(Serving& serving, CompletionRequest request, std::shared_ptr<HttpReply> reply, const std::string& id);
  // Submits every choice. Throws Error when the engine refuses one; then none runs.
  void start();

 private:
  struct Choice {
    Choice(const Tokenizer& tokenizer, const CompletionRequest& r) : text(tokenizer, r.stop, r.ignore_eos) {}
    RequestId id = 0;
    size_t prompt = 0;  // which of the request's
    AnswerText text;
    std::string shown;                // all text, unless streamed
    std::vector<TokenOutput> tokens;  // of the answer, up to a stop string
    size_t sent = 0;                  // tokens whose log-probabilities have been streamed
    FinishReason reason = FinishReason::kNone;
    Result result;
    std::chrono::steady_clock::time_point last;
    bool done = false;
  };

  Request make_request(const Choice& choice, uint32_t index) const;
  void on_token(size_t index, const TokenOutput& out);
  void on_finish(size_t index, Result&& result);
  void complete();
  void fail(const std::string& message);
  void cancel_all();

  void send_chunk(size_t index, const std::string& text, bool last);
  Json choice_json(size_t index) const;
  Json logprobs_json(const Choice& choice, size_t from) const;
  Json chat_logprob(const TokenOutput& out) const;
  Json text_logprobs(const Choice& choice, size_t from) const;
  Json receipt_of(const Choice& choice, size_t index) const;
  Json envelope(bool chunk) const;
  Json usage() const;
  bool chat() const { return request_.kind == CompletionKind::kChat; }

  Serving& serving_;
  CompletionRequest request_;
  std::shared_ptr<HttpReply> reply_;
  std::string id_;
  int64_t created_;
  std::chrono::steady_clock::time_point arrived_;
  std::vector<Choice> choices_;
  size_t open_ = 0;
  bool over_ = false;
};

}  // namespace isobit::server
