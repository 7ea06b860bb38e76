#include "cli/bench.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "cli/llama_cpp.h"
#include "models/registry.h"

namespace isobit::cli {
namespace {

struct BenchFlags {
  ModelFlags model;
  std::string python = "python3";
  int32_t prompt = 512, decode = 64, repetitions = 5;
  std::vector<int32_t> contexts = {32, 512};
  bool json = false, no_peer = false;
};

// The same token ids as bench/peers/llama_cpp_peer.py: what they say does not matter, only how many.
std::vector<int32_t> filler(int32_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; i++) ids.push_back(static_cast<int32_t>((i * 7919 + 13) % 40000 + 100));
  return ids;
}

struct Timing {
  double prefill_s = 0, decode_s = 0;
};

// A prefill of `prompt` tokens, then `decode` greedy tokens.
Timing time_request(Engine& engine, int32_t prompt, int32_t decode) {
  using Clock = std::chrono::steady_clock;
  Request r;
  r.prompt = filler(prompt);
  r.max_tokens = decode + 1;
  r.sampling.temperature = 0;
  Clock::time_point first, last;
  r.on_token = [&](const TokenOutput& t) { (t.position == prompt ? first : last) = Clock::now(); };
  const auto start = Clock::now();
  const RequestId id = engine.submit(std::move(r));
  engine.run_until_idle();
  const Result result = engine.take(id).value();
  if (result.reason == FinishReason::kError) throw Error(ErrorCode::kNumerical, result.error);
  return {std::chrono::duration<double>(first - start).count(),
          decode > 0 ? std::chrono::duration<double>(last - first).count() : 0.0};
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  const size_t n = v.size();
  return n % 2 == 1 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

// Not getrusage: its maximum outlives exec, so that it would include the process that started this one.
long peak_resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stol(line.substr(6));
  }
  return 0;
}

struct Rates {
  std::vector<double> prefill, peer_prefill;
  std::vector<std::vector<double>> decode, peer_decode;  // by context
};

int bench_cpu(BenchFlags& f) {
  const std::string path = resolve_model(f.model.model);
  const int threads =
      f.model.threads > 0 ? f.model.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int32_t context = std::max(f.prompt, *std::ranges::max_element(f.contexts)) + f.decode + 8;
  f.model.threads = threads;
  f.model.device = "cpu";
  f.model.context = context;
  EngineOptions o;
  o.max_requests = 1;
  o.prefix_cache = false;
  const auto session = open_session(f.model, o);
  Engine& engine = session->engine();
  std::optional<LlamaCpp> peer;
  if (!f.no_peer) peer.emplace(f.python, path, threads, context);
  Rates rates;
  rates.decode.resize(f.contexts.size());
  rates.peer_decode.resize(f.contexts.size());
  for (int32_t i = -1; i < f.repetitions; i++) {  // the first round warms up
    const double ours = f.prompt / time_request(engine, f.prompt, 0).prefill_s;
    const double theirs = peer ? f.prompt / peer->ask(fmt::format("prefill {}", f.prompt)) : 0.0;
    if (i >= 0) rates.prefill.push_back(ours), rates.peer_prefill.push_back(theirs);
    for (size_t c = 0; c < f.contexts.size(); c++) {
      const double rate = f.decode / time_request(engine, f.contexts[c], f.decode).decode_s;
      const double other = peer ? f.decode / peer->ask(fmt::format("decode {} {}", f.contexts[c], f.decode)) : 0.0;
      if (i >= 0) rates.decode[c].push_back(rate), rates.peer_decode[c].push_back(other);
    }
  }
  nlohmann::json j = {{"model", std::filesystem::path(path).filename()},
                      {"threads", threads},
                      {"device", engine.backend().info().description},
                      {"repetitions", f.repetitions},
                      {"load_s", session->load_seconds()},
                      {"prefill_tokens", f.prompt},
                      {"prefill_tok_s", median(rates.prefill)},
                      {"rss_kib", peak_resident_kib()}};
  double ratio = 1e9;
  for (size_t c = 0; c < f.contexts.size(); c++) {
    nlohmann::json d = {{"context", f.contexts[c]}, {"tok_s", median(rates.decode[c])}};
    if (peer) {
      d["peer_tok_s"] = median(rates.peer_decode[c]);
      d["ratio"] = median(rates.decode[c]) / median(rates.peer_decode[c]);
      ratio = std::min(ratio, d["ratio"].get<double>());
    }
    j["decode"].push_back(d);
  }
  if (peer) {
    j["peer"] = "llama-cpp-python " + peer->version();
    j["peer_prefill_tok_s"] = median(rates.peer_prefill);
    j["peer_rss_kib"] = static_cast<long>(peer->ask("rss"));
    j["prefill_ratio"] = median(rates.prefill) / median(rates.peer_prefill);
    j["decode_ratio"] = ratio;
    j["rss_ratio"] = j["rss_kib"].get<double>() / j["peer_rss_kib"].get<double>();
  }
  if (f.json) {
    std::cout << json_text(j) << "\n";
    return kOk;
  }
  std::cout << fmt::format("{}\n{}, {} threads, median of {}\n", path, j["device"].get<std::string>(), threads,
                           f.repetitions);
  std::cout << fmt::format("  {:<24} {:>8.1f} tok/s", fmt::format("prefill {}", f.prompt),
                           j["prefill_tok_s"].get<double>());
  if (peer)
    std::cout << fmt::format("   llama.cpp {:>8.1f}   ratio {:.2f}", j["peer_prefill_tok_s"].get<double>(),
                             j["prefill_ratio"].get<double>());
  std::cout << "\n";
  for (const auto& d : j["decode"]) {
    std::cout << fmt::format("  {:<24} {:>8.1f} tok/s", fmt::format("decode at {}", d["context"].get<int>()),
                             d["tok_s"].get<double>());
    if (peer)
      std::cout << fmt::format("   llama.cpp {:>8.1f}   ratio {:.2f}", d["peer_tok_s"].get<double>(),
                               d["ratio"].get<double>());
    std::cout << "\n";
  }
  std::cout << fmt::format("  {:<24} {:>8.1f} MiB  ", "resident memory", j["rss_kib"].get<double>() / 1024);
  if (peer)
    std::cout << fmt::format("   llama.cpp {:>8.1f}   ratio {:.2f}", j["peer_rss_kib"].get<double>() / 1024,
                             j["rss_ratio"].get<double>());
  std::cout << fmt::format("\n  {:<24} {:>8.3f} s\n", "model ready after", session->load_seconds());
  return kOk;
}

}  // namespace

void add_bench(CLI::App& app, Command& command) {
  CLI::App* sub = app.add_subcommand("bench", "Measure");
  sub->require_subcommand(1);
  auto f = std::make_shared<BenchFlags>();
  CLI::App* cpu = sub->add_subcommand(
      "cpu", "Prefill and decode on the CPU, in turn with llama.cpp where llama-cpp-python is installed");
  f->model.add(*cpu);
  cpu->add_option("--python", f->python, "Interpreter that has llama-cpp-python")->capture_default_str();
  cpu->add_option("-p,--prompt", f->prompt, "Prefill tokens")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  cpu->add_option("-n,--decode", f->decode, "Decoded tokens")->capture_default_str()->check(CLI::Range(1, 1 << 20));
  cpu->add_option("-r,--repetitions", f->repetitions, "Rounds counted")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cpu->add_option("--contexts", f->contexts, "Contexts at which decoding is timed")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  cpu->add_flag("--no-peer", f->no_peer, "Without llama.cpp");
  cpu->add_flag("--json", f->json, "As JSON");
  cpu->footer(R"(Examples:
  isobit bench cpu --threads 2 --python .venv/bin/python
  isobit bench cpu --no-peer --json)");
  cpu->callback([f, &command] { command.run = [f] { return bench_cpu(*f); }; });
  add_bench_decoder(*sub, command);
  add_bench_serve(*sub, command);
  add_bench_throughput(*sub, command);
}

}  // namespace isobit::cli
