// Many requests at once through one engine: what its users wait for; on a GPU, how near the whole comes to what its
// steps' bytes and operations allow, and on a CPU llama.cpp on the same load.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <memory>
#include <random>
#include <thread>

#include "cache/page_pool.h"
#include "cli/bench.h"
#include "cli/latencies.h"
#include "cli/llama_cpp.h"
#include "cli/speculation_flags.h"
#include "cli/step_floor.h"
#include "engine/engine.h"
#include "models/registry.h"

namespace isobit::cli {
namespace {

struct ThroughputFlags {
  ModelFlags model;
  std::string peer;  // an interpreter
  SpeculationFlags speculation;
  float temperature = 1;
  int32_t requests = 80, input = 1000, output = 1000, max_requests = 0, pages = 0;
  int32_t tokens_per_step = 2048, page_size = 64;
  uint64_t seed = 42;
  bool json = false;

  // "llama-8b-80x1000-1000"
  std::string name() const {
    const std::string file = std::filesystem::path(model.model).filename();
    return fmt::format("{}-{}x{}-{}", file.substr(file.find(':') + 1), requests, input, output);
  }
};

class Throughput {
 public:
  explicit Throughput(const ThroughputFlags& flags)
      : f_(flags),
        engine_(make_backend(f_.model.device_options()), open_checkpoint(resolve_model(f_.model.model)), options(f_)),
        floor_(engine_.config(), has_fp8(engine_.file())) {
    warm();
  }

  nlohmann::ordered_json run() {
    engine_.flush_prefix_cache();
    const EngineStats before = engine_.stats();
    submit();
    double floor = 0;
    for (bool more = true; more;) {
      const int64_t steps = engine_.stats().steps;
      more = engine_.step();
      if (engine_.stats().steps > steps) floor += floor_.us(work_of_step());
    }
    return report(before, engine_.stats(), floor);
  }

  Engine& engine() { return engine_; }

 private:
  using Clock = std::chrono::steady_clock;

  static bool has_fp8(const Checkpoint& file) {
    return std::ranges::any_of(file.tensors(), [](const Tensor& t) { return t.dtype == DType::kF8E4M3; });
  }

  static EngineOptions options(const ThroughputFlags& f) {
    EngineOptions o;
    o.context = f.input + f.output;
    o.max_requests = f.max_requests > 0 ? f.max_requests : f.requests;
    o.tokens_per_step = std::max(f.tokens_per_step, o.max_requests);
    o.page_size = f.page_size;
    o.compute = parse_compute_type(f.model.dtype);
    o.kv_cache = parse_kv_cache_type(f.model.kv_cache_dtype);
    f.speculation.apply(o);
    // A page for every token: on a GPU that is benchmarked nothing else wants its memory.
    const int64_t whole = int64_t{pages_for(o.context, f.page_size)} * o.max_requests;
    o.pages = f.pages > 0 ? f.pages : static_cast<int32_t>(std::min<int64_t>(whole, INT32_MAX));
    return o;
  }

  std::vector<int32_t> prompt(std::mt19937_64& random, int32_t tokens) const {
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(engine_.config().vocab));
    return ids;
  }

  // The first launch of a kernel loads it.
  void warm() {
    std::mt19937_64 random(f_.seed + 1);
    Request r;
    r.prompt = prompt(random, std::min(f_.input, 64));
    r.max_tokens = std::min(f_.output, 4);
    r.on_finish = [](Result&&) {};
    engine_.submit(std::move(r));
    engine_.run_until_idle();
  }

  void submit() {
    std::mt19937_64 random(f_.seed);
    times_.assign(static_cast<size_t>(f_.requests), {});
    start_ = Clock::now();
    for (int32_t i = 0; i < f_.requests; i++) {
      RequestTimes& times = times_[static_cast<size_t>(i)];
      times.prompt_tokens = f_.input;
      Request r;
      r.prompt = prompt(random, f_.input);
      r.max_tokens = f_.output;
      r.sampling.temperature = f_.temperature;
      r.sampling.seed = f_.seed + static_cast<uint64_t>(i);
      r.on_token = [this, &times](const TokenOutput&) {
        times.last = std::chrono::duration<double>(Clock::now() - start_).count();
        if (times.tokens++ == 0) times.first = times.last;
      };
      r.on_finish = [this](Result&& result) {
        if (result.reason != FinishReason::kLength) errors_.push_back(std::move(result.error));
      };
      engine_.submit(std::move(r));
    }
  }

  // Of the step that was started last. Its rows stand sequence by sequence, positions in order.
  StepWork work_of_step() const {
    StepWork w;
    const auto& rows = engine_.step_rows();
    for (size_t i = 0; i < rows.size(); i++) {
      const double keys = rows[i].position + 1;
      w.tokens++;
      w.pairs += keys;
      if (rows[i].position >= f_.input - 1) w.sampled++;
      if (i + 1 == rows.size() || rows[i + 1].request != rows[i].request) w.keys += keys;
    }
    return w;
  }

  nlohmann::ordered_json report(const EngineStats& before, const EngineStats& after, double floor) const {
    nlohmann::ordered_json j = {{"op", "throughput"}, {"case", f_.name()}};
    add_latencies(times_, j);
    const double out = std::max(j["output_tokens"].get<double>(), 1.0);
    j["us"] = 1e6 * j["seconds"].get<double>() / out;  // a token of output
    j["floor_us"] = floor / out;
    const int64_t sampled = after.sampled_tokens - before.sampled_tokens,
                  accepted = after.accepted_tokens - before.accepted_tokens;
    j["steps"] = after.steps - before.steps;
    j["accepted_length"] = static_cast<double>(sampled) / static_cast<double>(std::max<int64_t>(sampled - accepted, 1));
    j["preemptions"] = after.preemptions - before.preemptions;
    j["failed"] = errors_.size();
    if (!errors_.empty()) j["errors"] = errors_;
    return j;
  }

  ThroughputFlags f_;
  Engine engine_;
  StepFloor floor_;
  Clock::time_point start_;
  std::vector<RequestTimes> times_;
  std::vector<std::string> errors_;
};

// llama.cpp's batched decoding on the same load; the ratio of outputs goes into `j`.
void add_peer(const ThroughputFlags& f, nlohmann::ordered_json& j) {
  const int threads =
      f.model.threads > 0 ? f.model.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  LlamaCpp peer(f.peer, resolve_model(f.model.model), threads, f.input + f.output, f.requests);
  const std::string job = fmt::format("batch {} {}", f.input, f.output);
  peer.ask(fmt::format("batch {} {}", std::min(f.input, 16), std::min(f.output, 2)));  // warms up
  const double tokens = static_cast<double>(f.requests) * f.output;
  j["peer"] = "llama-cpp-python " + peer.version();
  j["peer_output_tok_s"] = tokens / peer.ask(job);
  j["ratio"] = j["output_tok_s"].get<double>() / j["peer_output_tok_s"].get<double>();
}

void print(const ThroughputFlags& f, const nlohmann::ordered_json& j, bool gpu) {
  const double share = j["floor_us"].get<double>() / j["us"].get<double>();
  std::cout << fmt::format("{}: {:.2f} s, {} steps\n", f.name(), j["seconds"].get<double>(), j["steps"].get<int64_t>());
  print_latencies(j);
  if (j.contains("errors"))
    std::cout << fmt::format("  {} failed, the first: {}\n", j["failed"].get<int>(), j["errors"][0].get<std::string>());
  if (gpu)
    std::cout << fmt::format("  {:<24} {:>10.1f} tok/s; {:.1f}% of it reached\n", "its steps would allow",
                             j["output_tok_s"].get<double>() / share, 100 * share);
  if (j.contains("ratio"))
    std::cout << fmt::format("  {:<24} {:>10.1f} tok/s; ratio {:.2f}\n", "llama.cpp",
                             j["peer_output_tok_s"].get<double>(), j["ratio"].get<double>());
}

int bench_throughput(const ThroughputFlags& f) {
  nlohmann::ordered_json j;
  bool gpu = false;
  {
    Throughput bench(f);
    j = bench.run();
    gpu = bench.engine().backend().runs_by_itself();
  }
  if (!f.peer.empty()) add_peer(f, j);
  if (f.json) {
    std::cout << j.dump() << "\n";
  } else {
    print(f, j, gpu);
  }
  return j["failed"] == 0 ? kOk : kInternal;
}

}  // namespace

void add_bench_throughput(CLI::App& bench, Command& command) {
  auto f = std::make_shared<ThroughputFlags>();
  f->model.model = "random:llama-8b";
  CLI::App* sub = bench.add_subcommand("throughput", "Many requests at once through the engine");
  const auto positive = [&](const char* name, int32_t& value, const char* what, int low = 1) {
    sub->add_option(name, value, what)->capture_default_str()->check(CLI::Range(low, 1 << 20));
  };
  f->model.add(*sub);
  positive("-r,--requests", f->requests, "Requests, all at once");
  positive("--input", f->input, "Prompt tokens of each");
  positive("--output", f->output, "Answer tokens of each");
  positive("--max-requests", f->max_requests, "Sequences computed at once; 0: all", 0);
  positive("--tokens-per-step", f->tokens_per_step, "Tokens computed in one step");
  positive("--page-size", f->page_size, "Tokens a page of the KV cache");
  positive("--pages", f->pages, "Pages of the KV cache; 0: enough for all", 0);
  f->speculation.add(*sub, true);
  sub->add_option("--temp,--temperature", f->temperature, "0: always the likeliest token")->capture_default_str();
  sub->add_option(
      "--peer", f->peer,
      "Also llama.cpp's batched decoding of the same load, greedy: an interpreter that has llama-cpp-python");
  sub->add_option("-s,--seed", f->seed, "Of the prompts and the sampling")->capture_default_str();
  sub->add_flag("--json", f->json, "As a row of the record");
  sub->footer(
      R"(On a GPU the time is held against a model: a step reads all weights once, and the keys and values of its sequences, at
4.3 TB/s, or makes its products at 790 TFLOP/s, whichever takes longer (rates measured on an H200); the steps' times add up.
Examples:
  isobit bench throughput --requests 80 --input 1000 --output 1000 --device cuda
  isobit bench throughput -m smollm2 -r 8 --input 128 --output 128 --temp 0 --device cpu --peer .venv/bin/python)");
  sub->callback([f, &command] { command.run = [f] { return bench_throughput(*f); }; });
}

}  // namespace isobit::cli
