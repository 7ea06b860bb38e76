#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <sstream>

#include "cli/cli.h"
#include "models/registry.h"
#include "numerics/contract.h"

namespace isobit::cli {
namespace {

std::atomic<bool> interrupted{false};  // a signal handler can reach nothing else

void on_interrupt(int) {
  if (interrupted.exchange(true)) _exit(kInterrupted);
}

// Of a model that states nothing.
constexpr SamplingDefaults kOwnSampling{
    .temperature = 0.8f, .top_p = 0.95f, .min_p = 0.05f, .repetition_penalty = 1.0f, .top_k = 40};

uint64_t draw_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

uint64_t parse_seed(const std::string& text) {
  size_t used = 0;
  uint64_t value = 0;
  try {
    value = std::stoull(text, &used, 0);
  } catch (const std::exception&) {
    used = 0;
  }
  require(used == text.size() && !text.empty() && text[0] != '-', "seed '{}' is not a number; it must be in [0, 2^64)",
          text);
  return value;
}

std::pair<int32_t, float> parse_bias(const std::string& text) {
  std::istringstream in(text);
  int32_t token = 0;
  char separator = 0;
  float bias = 0;
  in >> token >> separator >> bias;
  require(!in.fail() && separator == '=' && in.eof(), "logit bias '{}' is malformed; write TOKEN=BIAS, such as 42=-1.5",
          text);
  return {token, bias};
}

}  // namespace

Interrupt::Interrupt() {
  interrupted = false;
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);
}
Interrupt::~Interrupt() { std::signal(SIGINT, SIG_DFL); }
const std::atomic<bool>& Interrupt::flag() const { return interrupted; }
void Interrupt::clear() { interrupted = false; }

bool stdin_is_terminal() { return isatty(STDIN_FILENO) != 0; }
bool stderr_is_terminal() { return isatty(STDERR_FILENO) != 0; }

std::string read_file(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw fail(ErrorCode::kNotFound, "{} is a folder; name a file", path);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw fail(ErrorCode::kNotFound, "{}: cannot be read; check the path and its permissions", path);
  return {std::istreambuf_iterator<char>(in), {}};
}

void ModelFlags::add(CLI::App& app) {
  app.add_option("-m,--model", model,
                 "A model's name (see isobit list), the path of a GGUF file, or random:SHAPE: random weights of a "
                 "published shape")
      ->capture_default_str();
  app.add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("-t,--threads", threads, "CPU threads; 0: one per hardware thread")->capture_default_str();
  app.add_option("-c,--context", context, "Longest sequence in tokens; 0: 4096 or the model's limit")
      ->capture_default_str();
  app.add_option("--dtype", dtype, "What to compute in: bf16, f16, or auto: what the model is in; it moves bits")
      ->capture_default_str();
  app.add_option("--kv-cache-dtype", kv_cache_dtype,
                 "What to keep keys and values in: auto (as --dtype), bf16, f16, or fp8 (e4m3): half the memory; it "
                 "moves bits")
      ->capture_default_str();
  app.add_option("--simd", simd, "SIMD target on the CPU (scalar, sse4, avx2, avx512, neon); the bits are the same");
}

void SamplingFlags::add(CLI::App& app) {
  const auto stated = [](auto value) { return fmt::format("{}, or as the model states", value.value()); };
  app.add_option("--temp,--temperature", given.temperature, "Temperature; 0: always the likeliest token")
      ->default_str(stated(kOwnSampling.temperature));
  app.add_option("--top-k", given.top_k, "Keep the k likeliest tokens; 0: off")
      ->default_str(stated(kOwnSampling.top_k));
  app.add_option("--top-p", given.top_p, "Keep the likeliest tokens up to this mass; 1: off")
      ->default_str(stated(kOwnSampling.top_p));
  app.add_option("--min-p", given.min_p, "Drop tokens below this share of the likeliest; 0: off")
      ->default_str(stated(kOwnSampling.min_p));
  app.add_option("--repeat-penalty,--repetition-penalty", given.repetition_penalty, "1: off")
      ->default_str(stated(kOwnSampling.repetition_penalty));
  app.add_option("--presence-penalty", presence_penalty, "In [-2, 2]")->capture_default_str();
  app.add_option("--frequency-penalty", frequency_penalty, "In [-2, 2]")->capture_default_str();
  app.add_option("--logit-bias", logit_bias, "TOKEN=BIAS, may be repeated")->allow_extra_args(false);
  app.add_option("-s,--seed", seed, "Seed of the noise; without one a seed is drawn and reported");
  app.add_option("-n,--max-tokens", max_tokens, "Longest answer; -1: until the model stops or the context is full")
      ->capture_default_str();
  app.add_option("--stop", stop, "Stop at this text, may be repeated")->allow_extra_args(false);
  app.add_flag("--ignore-eos", ignore_eos, "Go on past the end-of-sequence token");
}

GenerateOptions SamplingFlags::options(const SamplingDefaults& model) const {
  GenerateOptions o;
  o.sampling = given.over((model.empty() ? kOwnSampling : model).over({}));
  o.sampling.presence_penalty = presence_penalty;
  o.sampling.frequency_penalty = frequency_penalty;
  o.sampling.seed = seed.empty() ? draw_seed() : parse_seed(seed);
  for (const std::string& b : logit_bias) o.sampling.logit_bias.push_back(parse_bias(b));
  o.max_tokens = max_tokens;
  o.stop = stop;
  o.ignore_eos = ignore_eos;
  return o;
}

std::unique_ptr<Session> open_session(const ModelFlags& flags, EngineOptions options) {
  const std::string path = resolve_model(flags.model);
  options.context = flags.context;
  options.compute = parse_compute_type(flags.dtype);
  options.kv_cache = parse_kv_cache_type(flags.kv_cache_dtype);
  const auto start = std::chrono::steady_clock::now();
  bool shown = false;
  const bool terminal = stderr_is_terminal();
  options.progress = [&](size_t done, size_t total) {
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!terminal || s < 1.0 || total == 0) return;
    const double rate = static_cast<double>(done) / s;
    std::cerr << fmt::format("\rloading {:3.0f}%  {:.0f} MB/s  {:.0f} s left ",
                             100.0 * static_cast<double>(done) / static_cast<double>(total), rate / 1e6,
                             static_cast<double>(total - done) / rate);
    shown = true;
  };
  auto session = std::make_unique<Session>(path, flags.device_options(), options);
  if (shown) std::cerr << "\r\033[K";
  return session;
}

std::string summary(const Answer& a, const GenerateOptions& o, Session& session) {
  std::string line = fmt::format("{} tokens in, {} out ({}), first after {:.0f} ms, {:.1f} tok/s, {}", a.prompt_tokens,
                                 a.tokens.size(), finish_reason_name(a.reason), a.first_token_s * 1e3,
                                 a.tokens_per_second(), session.engine().backend().info().name);
  if (o.sampling.temperature > 0) line += fmt::format(", seed {}", o.sampling.seed);
  return line + fmt::format(", {}, bits {}", numerics::kContractVersion, a.digest);
}

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return kUsage;
    case ErrorCode::kBadFile:
    case ErrorCode::kUnsupported:
    case ErrorCode::kNotFound:
      return kModel;
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kIo:
      return kMemory;
    case ErrorCode::kDevice:
      return kDevice;
    case ErrorCode::kNumerical:
      return kDifferent;
    case ErrorCode::kInternal:
      return kInternal;
  }
  return kInternal;
}

}  // namespace isobit::cli
