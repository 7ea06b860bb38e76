#pragma once
// Proves the contract on this machine: the same prompts through every setting that must not matter, what comes out
// compared by bytes.
//
// Of every position the residual stream behind the last layer is compared: all that the layers make goes into it. The
// LM head, which may be most of a small model's work, is compared where it is computed anyway, at each position that a
// token is sampled from, and at the prompt's last few. Seeded and greedy answers share the batches; a prompt that is
// long is answered greedily alone, since what a token is drawn from does not know how long the prompt was.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
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
  int32_t seeded_up_to = 64;   // longest prompt, in tokens, that is answered with a seed too; the shortest always is
  uint64_t seed = 42;
  std::vector<int32_t> batches = {1, 2, 7, 32};
  std::vector<int32_t> chunks = {1, 16, 64, 37};
  ComputeType compute = ComputeType::kAuto;
  KvCacheType kv_cache = KvCacheType::kAuto;
};

// One way of running the prompts. `backend` names which of the caller's backends to use.
struct VerifySetting {
  std::string name;
  int32_t batch = 1;
  int32_t chunk = 0;
  bool shuffle = false;
  bool cache = false;         // of prefixes; empty at first
  bool warm_cache = false;    // the setting before once more, on its engine: over the prefixes that it has cached
  bool starve_cache = false;  // so few pages that sequences are preempted and recomputed
  bool as_prefill =
      false;           // prompt and the baseline's answer as one prefill: every decoded position again, not decoded
  bool brief = false;  // for a backend of a fiftieth of the speed: three prompts of up to 128 tokens, few tokens more
  int backend = 0;
};

struct VerifyDifference {
  std::string prompt;
  bool sampled = false;  // with a seed; else greedily
  int32_t position = 0;  // the first position that differs
  int64_t layer = 0;     // where the difference first appears; -1: embedding, head or sampling
  std::string op;        // "embed", "qkv", …, "head", "sample"; "" where a second, traced run did not differ
  std::string what;      // "token", "residual", "logits"
};

struct VerifyRow {
  VerifySetting setting;
  int32_t answers = 0;                        // copies that fill a batch included
  int64_t positions = 0;                      // whose residual streams were compared
  int64_t logit_rows = 0;                     // compared
  std::vector<VerifyDifference> differences;  // the first of each answer
  double seconds = 0;
};

// Makes a backend of the i-th kind: 0 is the one the baseline runs on; others differ in threads, SIMD target or device.
using BackendFactory = std::function<std::unique_ptr<Backend>(int kind)>;
struct VerifyBackend {
  int kind = 0;
  std::string name;
  bool slow = false;  // its setting is brief
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
  struct Trail;     // what an answer gave, by position
  struct Listener;  // what playing reports
  // One prompt, answered one way.
  struct Answer {
    size_t prompt = 0;
    bool sampled = false;
    bool operator<(const Answer& other) const {
      return std::tie(sampled, prompt) < std::tie(other.sampled, other.prompt);
    }
  };

  std::vector<Answer> answers(const std::vector<VerifyPrompt>& prompts, bool brief) const;
  std::vector<Request> make_requests(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                                     const std::vector<Answer>& answers) const;
  std::unique_ptr<Engine> make_engine(const VerifySetting& setting, const std::vector<Request>& requests) const;
  int32_t play(Engine& engine, const VerifySetting& setting, const std::vector<Request>& requests,
               const Listener& listener) const;
  std::map<Answer, Trail> record(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts) const;
  VerifyRow compare(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                    std::unique_ptr<Engine>& engine) const;
  void locate(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
              std::map<Answer, VerifyDifference>& differences) const;

  std::shared_ptr<const Checkpoint> file_;
  BackendFactory factory_;
  std::vector<VerifyBackend> backends_;
  VerifyOptions options_;
  std::map<Answer, Trail> baseline_;
};

}  // namespace isobit
