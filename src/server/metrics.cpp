#include "server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace isobit::server {
namespace {

class Page {
 public:
  void head(std::string_view name, std::string_view type, std::string_view help) {
    fmt::format_to(std::back_inserter(text_), "# HELP isobit_{} {}\n# TYPE isobit_{} {}\n", name, help, name, type);
  }
  void sample(std::string_view name, double value, std::string_view labels = {}) {
    fmt::format_to(std::back_inserter(text_), "isobit_{}{} {}\n", name,
                   labels.empty() ? "" : fmt::format("{{{}}}", labels), value);
  }
  void one(std::string_view name, std::string_view type, double value, std::string_view help) {
    head(name, type, help);
    sample(name, value);
  }
  template <typename Ends, typename Count>
  void histogram(const std::string& name, const Ends& ends, const Count& count, double sum, std::string_view help) {
    head(name, "histogram", help);
    int64_t all = 0;
    for (size_t i = 0; i < ends.size(); i++) {
      all += count(i);
      sample(name + "_bucket", static_cast<double>(all), fmt::format("le=\"{}\"", ends[i]));
    }
    all += count(ends.size());
    sample(name + "_bucket", static_cast<double>(all), "le=\"+Inf\"");
    sample(name + "_sum", sum);
    sample(name + "_count", static_cast<double>(all));
  }
  void histogram(const std::string& name, const Histogram& h, std::string_view help) {
    histogram(
        name, Histogram::kEnds, [&](size_t i) { return h.counts[i]; }, h.sum, help);
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

void add_engine(Page& page, const EngineThread& engine, const EngineStats& s) {
  const auto d = [](int64_t v) { return static_cast<double>(v); };
  page.one("requests_running", "gauge", s.running, "Sequences being computed");
  page.one("requests_waiting", "gauge", s.waiting, "Sequences waiting for a place");
  page.head("kv_pages", "gauge", "Pages of the KV cache; free + cached + used is their total");
  page.sample("kv_pages", s.pages_free, "state=\"free\"");
  page.sample("kv_pages", s.pages_cached, "state=\"cached\"");
  page.sample("kv_pages", s.pages_used, "state=\"used\"");
  page.one("kv_pages_total", "gauge", s.pages_total, "Pages of the KV cache");
  if (s.window_pages_total > 0) {
    page.head("kv_window_pages", "gauge", "Pages of the layers with a window; free + cached + used is their total");
    page.sample("kv_window_pages", s.window_pages_free, "state=\"free\"");
    page.sample("kv_window_pages", s.window_pages_cached, "state=\"cached\"");
    page.sample("kv_window_pages", s.window_pages_used, "state=\"used\"");
    page.one("kv_window_pages_total", "gauge", s.window_pages_total, "Pages of the layers with a window");
    page.one("evicted_window_pages_total", "counter", d(s.evicted_window_pages), "Cached pages of them given up");
  }
  page.one("steps_total", "counter", d(s.steps), "Steps of the model");
  page.one("computed_tokens_total", "counter", d(s.computed_tokens), "Tokens computed, drafts included");
  page.one("sampled_tokens_total", "counter", d(s.sampled_tokens), "Tokens sampled");
  page.one("cached_tokens_total", "counter", d(s.cached_tokens), "Tokens found in the prefix cache");
  page.one("preemptions_total", "counter", d(s.preemptions), "Sequences that gave up their pages");
  page.one("evicted_pages_total", "counter", d(s.evicted_pages), "Cached pages given up");
  page.one("draft_tokens_total", "counter", d(s.drafted_tokens), "Tokens proposed by speculation");
  page.one("accepted_tokens_total", "counter", d(s.accepted_tokens), "Proposed tokens that were right");
  page.one("branched_tokens_total", "counter", d(s.branched_tokens),
           "Of those, by another path of a tree than its first");
  const DurationHistogram& steps = engine.step_times();
  page.histogram(
      "step_seconds", DurationHistogram::kEnds, [&](size_t i) { return steps.count(i); }, steps.sum(),
      "Time of one step");
}

}  // namespace

void Histogram::add(double seconds) {
  counts[static_cast<size_t>(std::ranges::lower_bound(kEnds, seconds) - kEnds.begin())]++;
  sum += seconds;
}

std::string Metrics::text(const EngineThread* engine) const {
  Page page;
  page.head("http_requests_total", "counter", "Answers by route and status; 499: the client went away");
  for (const auto& [key, count] : http)
    page.sample("http_requests_total", static_cast<double>(count),
                fmt::format("route=\"{}\",status=\"{}\"", key.first, key.second));
  page.one("connections", "gauge", connections, "Open connections");
  page.one("clients_gone_total", "counter", static_cast<double>(gone),
           "Clients that left before their answer was complete");
  page.one("requests_refused_total", "counter", static_cast<double>(refused),
           "Requests refused because the queue was full");
  page.one("prompt_tokens_total", "counter", static_cast<double>(prompt_tokens), "Tokens of accepted prompts");
  page.one("generated_tokens_total", "counter", static_cast<double>(generated_tokens), "Tokens handed out");
  page.histogram("time_to_first_token_seconds", first_token, "From a request's arrival to its first token");
  page.histogram("inter_token_seconds", inter_token, "Between tokens of one answer");
  page.histogram("request_seconds", request, "From a request's arrival to the end of its answer");
  if (engine != nullptr) add_engine(page, *engine, engine->stats());
  return page.take();
}

}  // namespace isobit::server
