// Load on a running server that speaks OpenAI's /v1/completions: what its users wait for, and what it gives in all.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cli/bench.h"
#include "cli/http_client.h"
#include "cli/latencies.h"
#include "cli/peer_process.h"

namespace isobit::cli {
namespace {

using ServeJson = nlohmann::ordered_json;
using ServeClock = std::chrono::steady_clock;

double seconds_between(ServeClock::time_point a, ServeClock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

// Lengths, "128" or "64:256": uniform between the two.
struct Lengths {
  int low = 0, high = 0;
  int draw(std::mt19937_64& random) const { return std::uniform_int_distribution(low, high)(random); }
};

Lengths parse_lengths(const std::string& text, const char* flag) {
  Lengths l;
  const size_t colon = text.find(':');
  try {
    size_t used = 0, used_high = 0;
    l.low = std::stoi(text, &used);
    l.high = colon == std::string::npos ? l.low : std::stoi(text.substr(colon + 1), &used_high);
    require(colon == std::string::npos ? used == text.size() : used == colon && colon + 1 + used_high == text.size(),
            "");
  } catch (const std::exception&) {
    l.low = 0;
  }
  require(l.low >= 1 && l.high >= l.low && l.high <= 1 << 20, "{} is '{}'; write a length or LOW:HIGH, in [1, 2^20]",
          flag, text);
  return l;
}

struct BenchServeFlags {
  std::string url = "http://127.0.0.1:8000", api_key, model, json_file, plot, input = "512", output = "128";
  int requests = 80, concurrency = 1024;
  double rate = 0, temperature = 1;
  uint64_t seed = 42;
};

struct Planned {
  double at = 0;  // seconds after the start
  ServeJson body;
};

struct Measured : RequestTimes {
  std::vector<double> gaps;  // seconds between pieces of the stream
  std::string error;
};

class ServeBench {
 public:
  explicit ServeBench(const BenchServeFlags& flags) : f_(flags), url_(parse_url(flags.url)) {}

  ServeJson run() {
    plan();
    const ServeJson before = counters();
    start_ = ServeClock::now();
    std::vector<std::thread> threads;
    const int clients = std::min(f_.concurrency, f_.requests);
    threads.reserve(static_cast<size_t>(clients));
    for (int i = 0; i < clients; i++) threads.emplace_back([this] { work(); });
    show_progress();
    for (auto& t : threads) t.join();
    return report(before);
  }

 private:
  // Token ids cut from one long random text, so that prompts have their length exactly and share nothing.
  void plan() {
    const Lengths input = parse_lengths(f_.input, "--input"), output = parse_lengths(f_.output, "--output");
    std::mt19937_64 random(f_.seed);
    std::exponential_distribution<double> gap(f_.rate > 0 ? f_.rate : 1);
    const std::vector<int32_t> ids = vocabulary(random);
    double at = 0;
    for (int i = 0; i < f_.requests; i++) {
      std::vector<int32_t> prompt;
      for (int n = input.draw(random); n > 0; n--) prompt.push_back(ids[random() % ids.size()]);
      ServeJson body = {{"prompt", prompt},
                        {"max_tokens", output.draw(random)},
                        {"temperature", f_.temperature},
                        {"seed", f_.seed + static_cast<uint64_t>(i)},
                        {"ignore_eos", true},
                        {"stream", true},
                        {"stream_options", {{"include_usage", true}}}};
      if (!f_.model.empty()) body["model"] = f_.model;
      planned_.push_back({at, std::move(body)});
      if (f_.rate > 0) at += gap(random);
    }
    results_.resize(planned_.size());
  }

  std::vector<int32_t> vocabulary(std::mt19937_64& random) const {
    std::string text;
    for (int i = 0; i < 2000; i++) text += static_cast<char>(random() % 6 == 0 ? ' ' : 'a' + random() % 26);
    HttpAnswer answer(url_, "/tokenize", ServeJson{{"prompt", text}}.dump(), f_.api_key);
    const ServeJson j = ServeJson::parse(answer.rest(), nullptr, false);
    if (answer.status() != 200 || !j.is_object() || !j.contains("tokens"))
      throw fail(ErrorCode::kIo, "{}/tokenize answers {}; the server must have that route", f_.url, answer.status());
    return j["tokens"].get<std::vector<int32_t>>();
  }

  void work() {
    while (true) {
      const size_t i = next_++;
      if (i >= planned_.size()) return;
      std::this_thread::sleep_until(
          start_ + std::chrono::duration_cast<ServeClock::duration>(std::chrono::duration<double>(planned_[i].at)));
      running_++;
      Measured m;
      try {
        m = ask(planned_[i].body);
      } catch (const std::exception& e) {
        m.error = e.what();
      }
      running_--;
      const std::lock_guard lock(mutex_);
      results_[i] = std::move(m);
      done_++;
    }
  }

  double now() const { return seconds_between(start_, ServeClock::now()); }

  Measured ask(const ServeJson& body) {
    Measured m;
    m.sent = now();
    HttpAnswer answer(url_, "/v1/completions", body.dump(), f_.api_key);
    if (answer.status() != 200) {
      m.error = fmt::format("{}: {:.200}", answer.status(), answer.rest());
      return m;
    }
    bool complete = false;
    while (const auto line = answer.line()) {
      if (!line->starts_with("data: ")) continue;
      complete = *line == "data: [DONE]";
      if (!complete) event(ServeJson::parse(line->substr(6), nullptr, false), m);
    }
    if (!complete && m.error.empty()) m.error = "the stream ended early";
    return m;
  }

  void event(const ServeJson& j, Measured& m) {
    if (!j.is_object() || j.contains("error")) {
      m.error = j.is_object() ? j["error"].dump() : "an event is not JSON";
      return;
    }
    if (j.contains("usage") && j["usage"].is_object()) {
      m.prompt_tokens = j["usage"].value("prompt_tokens", 0);
      m.tokens = j["usage"].value("completion_tokens", 0);
    }
    if (!j.contains("choices") || j["choices"].empty()) return;
    const double t = now();
    if (m.first == 0) {
      m.first = t;
    } else {
      m.gaps.push_back(t - m.last);
    }
    m.last = t;
    pieces_++;
  }

  void show_progress() {
    while (done_ < f_.requests) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (!stderr_is_terminal()) continue;
      std::cerr << fmt::format("\r{:6.1f} s  {}/{} done, {} running, {:.0f} pieces/s ", now(), done_.load(),
                               f_.requests, running_.load(), static_cast<double>(pieces_) / now())
                << std::flush;
    }
    if (stderr_is_terminal()) std::cerr << "\r\033[K";
  }

  // The server's own counters, where it is isobit's.
  ServeJson counters() const {
    ServeJson found = ServeJson::object();
    HttpAnswer answer(url_, "/metrics", {}, f_.api_key);
    while (const auto line = answer.line()) {
      for (const char* name : {"isobit_steps_total", "isobit_sampled_tokens_total", "isobit_accepted_tokens_total",
                               "isobit_draft_tokens_total"}) {
        if (line->starts_with(std::string(name) + " ")) found[name] = std::atof(line->c_str() + std::strlen(name));
      }
    }
    return found;
  }

  ServeJson report(const ServeJson& before) {
    ServeJson j = {{"url", f_.url},     {"requests", f_.requests}, {"rate", f_.rate},
                   {"input", f_.input}, {"output", f_.output},     {"seed", f_.seed}};
    std::vector<RequestTimes> completed;
    std::vector<double> gaps;
    ServeJson each = ServeJson::array(), errors = ServeJson::array();
    for (const Measured& m : results_) {
      if (!m.error.empty()) {
        errors.push_back(m.error);
        continue;
      }
      completed.push_back(m);
      gaps.insert(gaps.end(), m.gaps.begin(), m.gaps.end());
      each.push_back({m.sent, m.first, m.last, m.prompt_tokens, m.tokens});
    }
    add_latencies(completed, j);
    j["failed"] = errors.size();
    j["inter_token_s"] = spread(std::move(gaps));
    add_counters(before, j);
    if (!errors.empty()) j["errors"] = errors;
    j["each_sent_first_last_in_out"] = each;
    return j;
  }

  void add_counters(const ServeJson& before, ServeJson& j) const {
    const ServeJson after = counters();
    if (!before.contains("isobit_steps_total") || !after.contains("isobit_steps_total")) return;
    const auto grown = [&](const char* name) { return after.value(name, 0.0) - before.value(name, 0.0); };
    const double sampled = grown("isobit_sampled_tokens_total"), accepted = grown("isobit_accepted_tokens_total");
    j["steps"] = grown("isobit_steps_total");
    // Tokens a sequence got in a step: 1 without speculation.
    j["accepted_length"] = sampled > accepted ? sampled / (sampled - accepted) : 1.0;
  }

  const BenchServeFlags& f_;
  HttpUrl url_;
  std::vector<Planned> planned_;
  ServeClock::time_point start_;
  std::mutex mutex_;
  std::vector<Measured> results_;
  std::atomic<size_t> next_{0};
  std::atomic<int> done_{0}, running_{0};
  std::atomic<int64_t> pieces_{0};
};

void print_report(const ServeJson& j) {
  std::cout << fmt::format("{} of {} requests in {:.1f} s: {} tokens in, {} out\n", j["completed"].get<int>(),
                           j["requests"].get<int>(), j["seconds"].get<double>(), j["input_tokens"].get<int64_t>(),
                           j["output_tokens"].get<int64_t>());
  print_latencies(j);
  if (j.contains("errors"))
    std::cout << fmt::format("  {} failed, the first: {}\n", j["failed"].get<int>(), j["errors"][0].get<std::string>());
}

int bench_serve(BenchServeFlags& f) {
  require(f.plot.empty() || !f.json_file.empty(), "--plot draws what --json writes; give both");
  const ServeJson j = ServeBench(f).run();
  print_report(j);
  if (!f.json_file.empty()) {
    std::ofstream out(f.json_file);
    out << j.dump(1) << "\n";
    if (!out.flush()) throw fail(ErrorCode::kIo, "{}: cannot be written; check the path and the disk", f.json_file);
  }
  if (!f.plot.empty()) {
    PeerProcess plot({"python3", std::string(ISOBIT_BENCH_FOLDER) + "/plot_serve.py", f.json_file, f.plot});
    while (const auto line = plot.read_line()) std::cout << *line << "\n";
  }
  return j["failed"].get<int>() == 0 ? kOk : kMemory;
}

}  // namespace

void add_bench_serve(CLI::App& bench, Command& command) {
  auto f = std::make_shared<BenchServeFlags>();
  CLI::App* sub =
      bench.add_subcommand("serve", "Throughput and latencies of a running server (OpenAI's /v1/completions)");
  sub->add_option("--url", f->url, "The server")->capture_default_str();
  sub->add_option("--api-key", f->api_key, "Its key");
  sub->add_option("--served-name", f->model, "The model's name there, if it must be given");
  sub->add_option("-r,--requests", f->requests, "Requests in all")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  sub->add_option("--rate", f->rate, "Arrivals a second, at random (Poisson); 0: all at once")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
  sub->add_option("--concurrency", f->concurrency, "Requests under way at once, at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  sub->add_option("--input", f->input, "Prompt tokens: N, or LOW:HIGH for lengths between")->capture_default_str();
  sub->add_option("--output", f->output, "Answer tokens, likewise")->capture_default_str();
  sub->add_option("--temp,--temperature", f->temperature, "Temperature")->capture_default_str();
  sub->add_option("-s,--seed", f->seed, "Of the prompts, the arrivals and the sampling")->capture_default_str();
  sub->add_option("--json", f->json_file, "Write the figures here");
  sub->add_option("--plot", f->plot, "Draw them as PNG here (with matplotlib or gnuplot)");
  sub->footer(R"(Examples:
  isobit bench serve --url http://127.0.0.1:8000 --requests 80 --input 1000 --output 1000
  isobit bench serve --rate 4 --input 100:2000 --output 50:500 --json load.json --plot load.png)");
  sub->callback([f, &command] { command.run = [f] { return bench_serve(*f); }; });
}

}  // namespace isobit::cli
