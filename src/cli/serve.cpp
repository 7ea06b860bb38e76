#include <fmt/format.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <thread>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/speculation_flags.h"
#include "server/api.h"

namespace isobit::cli {
namespace {

struct ServeFlags {
  ModelFlags model;
  std::string name;  // positional
  SpeculationFlags speculation;
  std::string host = "127.0.0.1";
  uint16_t port = 8000;
  server::ApiOptions api;
  EngineOptions engine;
  double drain_s = 30, header_s = 10, body_s = 60, grammar_s = std::chrono::duration<double>(kGrammarTime).count();
  uint32_t body_mib = 16;
  int connections = 1024;
  bool no_cache = false;
};

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

server::HttpLimits limits_of(const ServeFlags& f) {
  server::HttpLimits l;
  l.header = milliseconds(f.header_s);
  l.body = milliseconds(f.body_s);
  l.body_bytes = uint64_t{f.body_mib} << 20;
  l.connections = f.connections;
  return l;
}

// The model loads while the server already answers 503; an error while loading ends the server.
class Loading {
 public:
  Loading(const ServeFlags& flags, server::Api& api, server::HttpServer& http)
      : thread_([this, &flags, &api, &http] {
          try {
            EngineOptions engine = flags.engine;
            flags.speculation.apply(engine);
            session_ = open_session(flags.model, engine);
            engine_ = std::make_unique<EngineThread>(session_->engine());
            worker_ = std::make_unique<server::Worker>();
            http.post([this, &api, &http] {
              api.set_ready(*session_, *engine_, http, *worker_);
              std::cerr << fmt::format("{} on {}, ready after {:.1f} s\n", session_->engine().config().name,
                                       session_->device(), session_->load_seconds());
            });
          } catch (...) {
            error_ = std::current_exception();
            http.stop(std::chrono::milliseconds(0));
          }
        }) {}
  ~Loading() { thread_.join(); }
  Loading(const Loading&) = delete;
  Loading& operator=(const Loading&) = delete;

  // After the server has ended: ends the engine; throws what loading threw.
  void finish() {
    thread_.join();
    thread_ = std::thread([] {});
    worker_.reset();
    engine_.reset();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::unique_ptr<Session> session_;
  std::unique_ptr<EngineThread> engine_;
  std::unique_ptr<server::Worker> worker_;
  std::exception_ptr error_;
  std::thread thread_;
};

int serve(ServeFlags& f) {
  if (!f.name.empty()) f.model.model = f.name;
  if (const char* key = std::getenv("ISOBIT_API_KEY"); key != nullptr && f.api.api_key.empty()) f.api.api_key = key;
  f.engine.prefix_cache = !f.no_cache;
  f.api.grammar_time = milliseconds(f.grammar_s);
  server::Metrics metrics;
  server::Api api(f.api, metrics);
  server::HttpServer http(
      f.host, f.port, limits_of(f),
      [&](server::HttpRequest&& request, const std::shared_ptr<server::HttpReply>& reply) {
        metrics.connections = http.connections();
        api.handle(std::move(request), reply);
      },
      server::Api::error_body,
      [&](const std::string& path, int status, double) {
        const bool known = server::Api::knows(path);
        metrics.http[{known ? path : "(other)", status}]++;
      });
  http.on_signal([&] {
    std::cerr << fmt::format("stopping; answers under way have {} s (once more to stop now)\n", f.drain_s);
    http.stop(milliseconds(f.drain_s));
  });
  std::cerr << fmt::format("listening on http://{}:{}\n", f.host, http.port());
  Loading loading(f, api, http);
  http.run();
  loading.finish();
  return kOk;
}

}  // namespace

void add_serve(CLI::App& app, Command& command) {
  auto f = std::make_shared<ServeFlags>();
  CLI::App* sub = app.add_subcommand("serve", "An OpenAI-compatible server");
  sub->add_option("name", f->name, "Model, as --model")->type_name("[MODEL]");
  f->model.add(*sub);
  sub->add_option("--host", f->host, "Address to listen on; 0.0.0.0 for all")->capture_default_str();
  sub->add_option("--port", f->port, "Port; 0: any free one")->capture_default_str();
  sub->add_option("--api-key", f->api.api_key, "Key that clients must send; also from ISOBIT_API_KEY");
  sub->add_option("--served-name", f->api.model, "The model's name for clients; without one, the file's");
  sub->add_option("--max-requests", f->engine.max_requests, "Sequences computed at once")->capture_default_str();
  sub->add_option("--tokens-per-step", f->engine.tokens_per_step, "Tokens computed in one step")->capture_default_str();
  sub->add_option("--chunk", f->engine.chunk, "Longest prefill chunk; 0: as the step allows")->capture_default_str();
  sub->add_option("--pages", f->engine.pages, "Pages of the KV cache; 0: as memory allows")->capture_default_str();
  sub->add_option("--window-pages", f->engine.window_pages,
                  "Of them apart for layers with a sliding window; 0: as the window, --max-requests and --pages ask")
      ->capture_default_str();
  sub->add_option("--page-size", f->engine.page_size, "Tokens a page of the KV cache")->capture_default_str();
  f->speculation.add(*sub, true);
  sub->add_option("--queue", f->api.queue, "Sequences that may wait; more are refused with 429")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  sub->add_option("--max-choices", f->api.choices, "Prompts times n of one request")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  sub->add_option("--connections", f->connections, "Open connections; more are refused with 503")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  sub->add_option("--max-body", f->body_mib, "Largest request body in MiB")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  sub->add_option("--header-timeout", f->header_s, "Seconds for a request's header")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 3600.0));
  sub->add_option("--body-timeout", f->body_s, "Seconds for a request's body")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 3600.0));
  sub->add_option("--grammar-timeout", f->grammar_s,
                  "Seconds for making a schema, expression or grammar of structured output ready")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 3600.0));
  sub->add_option("--drain", f->drain_s, "Seconds that answers under way have once the server is to stop")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 86400.0));
  sub->add_flag("--no-prefix-cache", f->no_cache, "Compute every prompt from its start");
  sub->footer(R"(Examples:
  isobit serve
  isobit serve ./model.gguf --host 0.0.0.0 --port 8080 --api-key secret
  curl http://127.0.0.1:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}], "seed": 1}')");
  sub->callback([f, &command] { command.run = [f] { return serve(*f); }; });
}

}  // namespace isobit::cli
