#pragma once
// The routes: what a request means, whom to ask, how to answer. Lives on the HTTP server's thread.
#include <memory>
#include <optional>
#include <string>

#include "server/generation.h"
#include "server/http_server.h"
#include "server/metrics.h"

namespace isobit::server {

struct ApiOptions {
  std::string api_key;   // "": none is asked for
  int32_t queue = 256;   // sequences that may wait for a place; more are refused with 429
  int32_t choices = 64;  // prompts × n of one request
  std::chrono::milliseconds grammar_time = kGrammarTime;  // for making a constraint ready
  std::string model;                                      // the name clients use; "": the file's
};

class Api {
 public:
  Api(ApiOptions options, Metrics& metrics) : options_(std::move(options)), metrics_(metrics) {}

  // Until then every route that needs the model answers 503.
  void set_ready(Session& session, EngineThread& engine, HttpServer& http, Worker& worker);
  // The model could not be loaded, or the server is going down: 503 with this message.
  void set_unavailable(const std::string& why) { unavailable_ = why; }

  void handle(HttpRequest&& request, const std::shared_ptr<HttpReply>& reply);
  static std::string error_body(int status, const std::string& message);
  static bool knows(const std::string& path) { return find(path, {}) != nullptr; }

 private:
  struct Route;
  using Make = std::function<std::shared_ptr<Generation>(CompletionRequest&&)>;
  // By method where a path has several; else whatever is at the path.
  static const Route* find(const std::string& path, std::string_view method);

  void check_key(const HttpRequest& request) const;
  Serving& serving();

  void page(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void health(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void metrics(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void models(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void chat_completions(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void completions(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void generate(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void complete(CompletionKind kind, HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void start(CompletionRequest&& request, const std::shared_ptr<HttpReply>& reply, const Make& make);
  void health_generate(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void model_info(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void embeddings(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void tokenize(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void detokenize(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void score(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void flush_cache(HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  void check_queue(size_t more);
  RequestLimits limits() { return {options_.choices, serving().model}; }

  ApiOptions options_;
  Metrics& metrics_;
  std::string unavailable_ = "the model is loading";
  std::optional<Serving> serving_;
};

}  // namespace isobit::server
