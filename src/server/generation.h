#pragma once
// One request for completions under way: its choices run in the engine, their tokens come back as text, as one body or
// as a stream, in the form of the interface that was asked. Lives on the server's thread.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "engine/answer_text.h"
#include "engine/engine_thread.h"
#include "server/completion_request.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/worker.h"

namespace isobit::server {

// What the routes share.
struct Serving {
  Session& session;
  EngineThread& engine;
  HttpServer& http;
  Metrics& metrics;
  std::string model;        // as clients name it
  std::string fingerprint;  // contract version, model digest and what it is computed in
  Worker& worker;           // makes grammars ready
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(Serving& serving, CompletionRequest request, std::shared_ptr<HttpReply> reply, std::string id);
  virtual ~Generation() = default;
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Submits every choice. Throws Error when the engine refuses one; then none runs.
  void start();

 protected:
  struct Choice {
    Choice(const Tokenizer& tokenizer, const CompletionRequest& r) : text(tokenizer, r.stop, r.ignore_eos) {}
    RequestId id = 0;
    size_t prompt = 0;  // which of the request's
    AnswerText text;
    std::string shown;                // all text so far
    std::vector<TokenOutput> tokens;  // of the answer, up to a stop string
    size_t sent = 0;                  // tokens whose log-probabilities have been streamed
    FinishReason reason = FinishReason::kNone;
    Result result;
    std::chrono::steady_clock::time_point last;
    bool done = false;
  };

  // The forms. Of a stream: what comes before a choice's text, a piece of it (text may be empty when it is the last),
  // and what comes after all.
  virtual void write_start(size_t index) = 0;
  virtual void write_piece(size_t index, const std::string& text, bool last) = 0;
  virtual void write_end() = 0;
  virtual Json whole() = 0;

  const CompletionRequest& request() const { return request_; }
  const std::vector<int32_t>& prompt_of(const Choice& choice) const { return request_.prompts[choice.prompt]; }
  const Serving& serving() const { return serving_; }
  std::vector<Choice>& choices() { return choices_; }
  const std::vector<Choice>& choices() const { return choices_; }
  const std::string& id() const { return id_; }
  double seconds() const;  // since the request came
  void send_event(const Json& json) { reply_->event(to_text(json)); }
  Json receipt_of(const Choice& choice, size_t index) const;

 private:
  Request make_request(const Choice& choice, uint32_t index) const;
  void on_token(size_t index, const TokenOutput& out);
  void on_finish(size_t index, Result&& result);
  void complete();
  void fail(const std::string& message);
  void cancel_all();
  void log_end(const char* how) const;

  Serving& serving_;
  CompletionRequest request_;
  std::shared_ptr<HttpReply> reply_;
  std::string id_;
  std::chrono::steady_clock::time_point arrived_;
  std::vector<Choice> choices_;
  size_t open_ = 0;
  bool over_ = false;
};

// JSON has no infinities; OpenAI's servers write a very small number.
double finite_logprob(float logprob);

}  // namespace isobit::server
