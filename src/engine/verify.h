#pragma once
// Proves the contract on this machine: the same prompts through every setting that must not matter, logits compared by
// bytes.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace isobit {

struct VerifyPrompt {
  std::string name;
  std::vector<int32_t> tokens;
  std::vector<int32_t> stop_tokens;
};

struct VerifyOptions {
  int32_t decode_tokens = 16;  // sampled after each prompt, greedy and seeded
  uint64_t seed = 42;
  std::vector<int32_t> batches = {1, 2, 7, 32};
  std::vector<int32_t> chunks = {1, 16, 64, 37};
};

// One way of running the prompts. `backend` names which of the caller's backends to use.
struct VerifySetting {
  std::string name;
  int32_t batch = 1;
  int32_t chunk = 0;
  bool shuffle = false;
  bool warm_cache = false;    // run everything once before, then again over the cached prefixes
  bool starve_cache = false;  // so few pages that sequences are preempted and recomputed
  bool as_prefill =
      false;  // prompt and the baseline's answer as one prefill: every decoded position again, not decoded
  int backend = 0;
};

struct VerifyDifference {
  std::string prompt;
  int32_t position = 0;  // the first position whose logits or token differ
  int64_t layer = 0;     // where the difference first appears; -1: embedding, head or sampling
  std::string op;        // "embed", "qkv", …, "head", "sample"; "" where a second, traced run did not differ
  std::string what;      // "logits", "token"
};

struct VerifyRow {
  VerifySetting setting;
  bool sampled = false;
  int64_t positions = 0;                      // logits compared
  std::vector<VerifyDifference> differences;  // the first of each prompt
  double seconds = 0;
};

// Makes a backend of the i-th kind: 0 is the one the baseline runs on; others differ in threads, SIMD target or device.
using BackendFactory = std::function<std::unique_ptr<Backend>(int kind)>;
struct VerifyBackend {
  int kind = 0;
  std::string name;
};

class Verifier {
 public:
  Verifier(std::shared_ptr<const Checkpoint> file, BackendFactory factory, std::vector<VerifyBackend> backends,
           const VerifyOptions& options);
  ~Verifier();

  // Runs the baseline (each prompt alone, one chunk, no cache), then every setting; calls on_row after each.
  std::vector<VerifyRow> run(const std::vector<VerifyPrompt>& prompts,
                             const std::function<void(const VerifyRow&)>& on_row);
  std::vector<VerifySetting> settings() const;

 private:
  struct Trail;  // what one prompt gave: tokens, and each position's logits

  std::vector<Request> make_requests(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                                     bool sampled) const;
  std::unique_ptr<Engine> make_engine(const VerifySetting& setting, const std::vector<Request>& requests) const;
  std::vector<Trail> play(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts, bool sampled) const;
  VerifyRow compare(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts, bool sampled) const;
  void locate(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts, bool sampled,
              std::map<size_t, VerifyDifference>& differences) const;

  std::shared_ptr<const Checkpoint> file_;
  BackendFactory factory_;
  std::vector<VerifyBackend> backends_;
  VerifyOptions options_;
  std::vector<Trail> greedy_, seeded_;  // the baseline
};

}  // namespace isobit
