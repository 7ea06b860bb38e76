#pragma once
// The command line. One file per command; each adds itself to the app and returns what to run.
#include <CLI/CLI.hpp>
#include <atomic>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/session.h"
#include "models/sampling_defaults.h"

namespace isobit::cli {

// Documented in --help and docs: what a script can rely on.
enum ExitCode : int {
  kOk = 0,
  kInternal = 1,
  kUsage = 2,      // unknown flag or value out of range
  kModel = 3,      // file missing, damaged or not supported
  kDevice = 4,     // no such device, driver too old, …
  kMemory = 5,     // memory or disk does not suffice
  kDifferent = 6,  // verify found a difference, or a model's numbers are not finite
  kInterrupted = 130,
};
int exit_code(ErrorCode code);

// The whole program: parses, runs, reports errors on stderr, returns the exit code.
int run(int argc, const char* const* argv);

// A command's work, set by whichever subcommand was parsed.
struct Command {
  std::function<int()> run;
};

void add_run(CLI::App& app, Command& command);
void add_chat(CLI::App& app, Command& command);
void add_score(CLI::App& app, Command& command);
void add_verify(CLI::App& app, Command& command);
void add_bench(CLI::App& app, Command& command);
void add_serve(CLI::App& app, Command& command);
void add_replay(CLI::App& app, Command& command);
void add_quantize(CLI::App& app, Command& command);
void add_models(CLI::App& app, Command& command);  // pull, list
void add_show(CLI::App& app, Command& command);

// Flags that several commands share.
struct ModelFlags {
  std::string model = "smollm2", device = "auto", dtype = "auto", kv_cache_dtype = "auto", simd;
  int threads = 0;
  int32_t context = 0;
  void add(CLI::App& app);
  DeviceOptions device_options() const { return {device, threads, simd}; }
};

struct SamplingFlags {
  SamplingDefaults given;
  float presence_penalty = 0, frequency_penalty = 0;
  std::string seed;  // "" draws one
  int32_t max_tokens = -1;
  std::vector<std::string> stop, logit_bias;
  bool ignore_eos = false;
  void add(CLI::App& app);
  // Settled settings: what was not given is the model's, or isobit's where the model states nothing; draws the seed
  // where none was given. Throws Error for a malformed value.
  GenerateOptions options(const SamplingDefaults& model = {}) const;
};

// A session with progress on stderr while it loads, if that takes over a second.
std::unique_ptr<Session> open_session(const ModelFlags& flags, EngineOptions options);

// An answer as one JSON object: text, tokens, log-probabilities, timings, settings.
std::string answer_json(const Answer& answer, const GenerateOptions& options, Session& session);

// Bytes that are not UTF-8 (a path may hold any) become U+FFFD. indent -1: one line.
std::string json_text(const nlohmann::json& json, int indent = -1);

// The last line of an answer, for stderr.
std::string summary(const Answer& answer, const GenerateOptions& options, Session& session);

// Set by Ctrl-C while an Interrupt lives; a second Ctrl-C ends the program.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  const std::atomic<bool>& flag() const;
  bool raised() const { return flag().load(); }
  void clear();
};

std::string human_bytes(uint64_t bytes);         // "1.5 MiB"
std::string read_file(const std::string& path);  // "-": stdin
bool stdin_is_terminal();
bool stderr_is_terminal();

}  // namespace isobit::cli
