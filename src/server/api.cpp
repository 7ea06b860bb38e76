#include "server/api.h"

#include <ctime>

#include "base/log.h"
#include "engine/receipt.h"
#include "server/openai_answer.h"
#include "server/page.h"
#include "server/sglang_answer.h"

namespace isobit::server {
namespace {

void answer(const std::shared_ptr<HttpReply>& reply, const Json& body) {
  reply->send(200, "application/json", to_text(body), {});
}

void answer_error(const std::shared_ptr<HttpReply>& reply, const ApiError& e) {
  Headers headers;
  if (e.status() == 429 || e.status() == 503) headers.emplace_back("Retry-After", "1");
  if (e.status() == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  reply->send(e.status(), "application/json", to_text(e.body()), headers);
}

// Takes as long for a wrong key as for the right one.
bool equal_secret(std::string_view given, std::string_view wanted) {
  unsigned char difference = given.size() == wanted.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); i++)
    difference |= static_cast<unsigned char>(given[i] ^ wanted[i % wanted.size()]);
  return difference == 0;
}

// What went wrong in `work`, as an answer.
void answering(const std::shared_ptr<HttpReply>& reply, const std::function<void()>& work) {
  try {
    work();
  } catch (const ApiError& e) {
    answer_error(reply, e);
  } catch (const Error& e) {
    answer_error(reply, to_api_error(e));
  } catch (const std::exception& e) {
    spdlog::error("{}", e.what());
    answer_error(reply, ApiError(500, "server_error", "an internal error; the server's log names it"));
  }
}

}  // namespace

struct Api::Route {
  std::string_view path, method;
  bool open;  // needs neither key nor model
  void (Api::*handle)(HttpRequest&, const std::shared_ptr<HttpReply>&);
};

const Api::Route* Api::find(const std::string& path, std::string_view method) {
  static constexpr Route kRoutes[] = {
      {"/", "GET", true, &Api::page},
      {"/health", "GET", true, &Api::health},
      {"/metrics", "GET", true, &Api::metrics},
      {"/v1/models", "GET", false, &Api::models},
      {"/v1/chat/completions", "POST", false, &Api::chat_completions},
      {"/v1/completions", "POST", false, &Api::completions},
      {"/v1/embeddings", "POST", false, &Api::embeddings},
      {"/v1/score", "POST", false, &Api::score},
      {"/tokenize", "POST", false, &Api::tokenize},
      {"/detokenize", "POST", false, &Api::detokenize},
      {"/generate", "POST", false, &Api::generate},
      {"/flush_cache", "POST", false, &Api::flush_cache},
      {"/flush_cache", "GET", false, &Api::flush_cache},
      {"/health_generate", "GET", false, &Api::health_generate},
      {"/get_model_info", "GET", false, &Api::model_info},
  };
  const Route* found = nullptr;
  for (const Route& r : kRoutes) {
    if (r.path == path && (found == nullptr || r.method == method)) found = &r;
  }
  return found;
}

std::string Api::error_body(int status, const std::string& message) {
  return to_text(ApiError(status, status >= 500 ? "server_error" : "invalid_request_error", message).body());
}

void Api::set_ready(Session& session, EngineThread& engine, HttpServer& http, Worker& worker) {
  const Engine& e = engine.engine();
  if (options_.model.empty()) options_.model = e.config().name;
  serving_.emplace(Serving{session, engine, http, metrics_, options_.model, fingerprint(e), worker});
  unavailable_.clear();
}

Serving& Api::serving() {
  std::string why = unavailable_;
  if (why.empty() && serving_) why = serving_->engine.failure();
  if (!why.empty()) throw ApiError(503, "server_error", why);
  return *serving_;
}

void Api::check_key(const HttpRequest& request) const {
  if (options_.api_key.empty()) return;
  constexpr std::string_view kBearer = "Bearer ";
  const std::string_view given = request.authorization;
  if (!given.starts_with(kBearer) || !equal_secret(given.substr(kBearer.size()), options_.api_key))
    throw ApiError(401, "invalid_request_error",
                   "the API key is missing or wrong; send it as Authorization: Bearer KEY", {}, "invalid_api_key");
}

void Api::handle(HttpRequest&& request, const std::shared_ptr<HttpReply>& reply) {
  spdlog::debug("request {}: {} {} ({} bytes)", request.id, request.method, request.path, request.body.size());
  answering(reply, [&] {
    const Route* route = find(request.path, request.method);
    if (route == nullptr)
      throw ApiError(404, "invalid_request_error", fmt::format("there is nothing at {:.200}", request.path), {},
                     "not_found");
    if (route->method != request.method && !(route->method == "GET" && request.method == "HEAD"))
      throw ApiError(405, "invalid_request_error",
                     fmt::format("{} takes {}, not {}", route->path, route->method, request.method));
    if (!route->open) {
      check_key(request);
      serving();
    }
    (this->*route->handle)(request, reply);
  });
}

void Api::page(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  reply->send(200, "text/html; charset=utf-8", std::string(page_html()),
              {{"Content-Security-Policy", std::string(kPagePolicy)}, {"X-Content-Type-Options", "nosniff"}});
}

void Api::health(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  serving();
  answer(reply, {{"status", "ok"}, {"model", serving_->model}, {"device", serving_->session.device()}});
}

void Api::metrics(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  reply->send(200, "text/plain; version=0.0.4", metrics_.text(serving_ ? &serving_->engine : nullptr), {});
}

void Api::models(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  const Session& s = serving().session;
  answer(reply, {{"object", "list"},
                 {"data", Json::array({{{"id", serving_->model},
                                        {"object", "model"},
                                        {"created", std::time(nullptr)},
                                        {"owned_by", "isobit"},
                                        {"max_model_len", s.options().context},
                                        {"fingerprint", serving_->fingerprint}}})}});
}

void Api::check_queue(size_t more) {
  if (serving().engine.stats().waiting + static_cast<int64_t>(more) <= options_.queue) return;
  metrics_.refused++;
  throw ApiError(429, "rate_limit_error", fmt::format("the queue of {} is full; try again later", options_.queue), {},
                 "queue_full");
}

void Api::complete(CompletionKind kind, HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  Serving& s = serving();
  start(read_completion(kind, parse_body(request.body), s.session, limits()), reply,
        [&s, reply, id = request.id](CompletionRequest&& r) { return openai_generation(s, std::move(r), reply, id); });
}

void Api::generate(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  Serving& s = serving();
  SglangOptions options;
  const Json body = parse_body(request.body);
  CompletionRequest r = read_generate(body, s.session, limits(), options);
  const std::string id = Fields(body).text("rid").value_or(request.id);
  start(std::move(r), reply, [&s, reply, id, options](CompletionRequest&& ready) {
    return sglang_generation(s, std::move(ready), options, reply, id);
  });
}

// At once; or, where the answer has a grammar, once that is compiled, which would hold up everybody's streams here.
void Api::start(CompletionRequest&& request, const std::shared_ptr<HttpReply>& reply, const Make& make) {
  check_queue(request.prompts.size() * static_cast<size_t>(request.n));
  if (!request.structured) return make(std::move(request))->start();
  Serving& s = serving();
  const auto time = options_.grammar_time;
  s.worker.post([&s, reply, make, time, kept = std::make_shared<CompletionRequest>(std::move(request))] {
    std::optional<ApiError> error;
    try {
      kept->grammar = s.session.grammar(kept->structured->constraint, time);
    } catch (const GrammarBusy& e) {
      error = ApiError(503, "server_error", e.what(), kept->structured->param, "busy");
    } catch (const std::exception& e) {
      error = invalid(kept->structured->param, e.what());
    }
    s.http.post([reply, make, kept, error] {
      if (reply->gone()) return;
      answering(reply, [&] {
        if (error) throw ApiError(*error);
        make(std::move(*kept))->start();
      });
    });
  });
}

// One token, so that all of the way has been gone.
void Api::health_generate(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  Serving& s = serving();
  Request r;
  r.prompt = {0};
  r.max_tokens = 1;
  r.sampling.temperature = 0;
  r.priority = kMaxPriority;
  r.on_finish = [&s, reply](Result&& result) {
    s.http.post([reply, error = result.error] {
      if (!error.empty()) return answer_error(reply, ApiError(503, "server_error", error));
      answer(reply, {{"status", "ok"}});
    });
  };
  s.engine.submit(std::move(r));
}

void Api::model_info(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  const Serving& s = serving();
  answer(reply, {{"model_path", s.model},
                 {"tokenizer_path", s.model},
                 {"is_generation", true},
                 {"preferred_sampling_params", nullptr},
                 {"weight_version", s.fingerprint},
                 {"max_model_len", s.session.options().context}});
}

void Api::chat_completions(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  complete(CompletionKind::kChat, request, reply);
}

void Api::completions(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  complete(CompletionKind::kText, request, reply);
}

void Api::embeddings(HttpRequest&, const std::shared_ptr<HttpReply>&) {
  throw ApiError(400, "invalid_request_error",
                 fmt::format("'{}' is a model that writes text; it makes no embeddings", serving_->model), "model",
                 "unsupported");
}

void Api::tokenize(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  const Json body = parse_body(request.body);
  const Fields fields(body);
  const Session& s = serving().session;
  check_model(fields, serving_->model);
  std::vector<int32_t> ids;
  if (fields.find("messages") != nullptr) {
    ids = read_conversation(fields, s);
  } else {
    ids =
        s.tokenizer().encode(fields.required_text("prompt"), {.add_special = fields.flag("add_special_tokens", true)});
  }
  answer(reply, {{"count", ids.size()}, {"max_model_len", s.options().context}, {"tokens", ids}});
}

void Api::detokenize(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  const Json body = parse_body(request.body);
  const Tokenizer& t = serving().session.tokenizer();
  answer(reply, {{"prompt", t.decode(Fields(body).tokens("tokens", t.vocab_size()))}});
}

// Log-probabilities of given tokens, as sampling would report them: tokens, or a prompt to be tokenized.
void Api::score(HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  Serving& s = serving();
  const Json body = parse_body(request.body);
  const Fields fields(body);
  check_model(fields, s.model);
  Request r;
  r.prompt = fields.find("tokens") != nullptr ? fields.tokens("tokens", s.session.tokenizer().vocab_size())
                                              : s.session.text_prompt(fields.required_text("prompt"));
  if (r.prompt.size() < 2)
    throw invalid("tokens", fmt::format("{} tokens were given; at least 2 are needed", r.prompt.size()));
  r.max_tokens = 0;
  r.prompt_logprobs = true;
  r.sampling.temperature = 0;
  r.priority = static_cast<int32_t>(fields.integer("priority", 0, -kMaxPriority, kMaxPriority));
  check_queue(1);
  const std::vector<int32_t> tokens = r.prompt;
  r.on_finish = [&s, reply, tokens](Result&& result) {
    s.http.post([&s, reply, tokens, kept = std::move(result)] {
      if (kept.reason == FinishReason::kCancelled) return;
      if (kept.reason == FinishReason::kError) return answer_error(reply, ApiError(500, "server_error", kept.error));
      Json values = Json::array({nullptr});
      for (const float v : kept.prompt_logprobs) values.push_back(v);
      answer(reply, {{"model", s.model},
                     {"system_fingerprint", s.fingerprint},
                     {"tokens", tokens},
                     {"logprobs", values},
                     {"argmax", kept.prompt_best}});
    });
  };
  const RequestId id = s.engine.submit(std::move(r));
  reply->on_gone([&s, id] {
    s.metrics.gone++;
    s.engine.cancel(id);
  });
}

void Api::flush_cache(HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
  Serving& s = serving();
  s.engine.post([&s, reply](Engine& engine) {
    engine.flush_prefix_cache();
    s.http.post([reply] { answer(reply, {{"flushed", true}}); });
  });
}

}  // namespace isobit::server
