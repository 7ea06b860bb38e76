#include "engine/verify.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "base/digest.h"
#include "base/error.h"
#include "engine/digests.h"
#include "numerics/philox.h"

namespace isobit {
namespace {

// One operator's output for one position.
struct OpDigest {
  int64_t layer = 0;
  std::string op;
  uint64_t digest = 0;
};
// By position, in the order they ran. A position may have been computed several times: in copies of a prompt, after a
// preemption, to warm the cache.
using Trace = std::map<int32_t, std::vector<OpDigest>>;
constexpr const char* kHead = "head";
constexpr const char* kSample = "sample";

uint64_t digest_of(std::span<const std::byte> bytes) {
  Digest d;
  d.add(bytes.data(), bytes.size());
  return d.value();
}

// The place of an operator among those of a position; i is where it would be had the position been computed once.
std::optional<size_t> place_of(const OpDigest& op, const std::vector<OpDigest>& among, size_t i) {
  for (size_t n = 0; n < among.size(); n++) {
    const size_t at = (i + n) % among.size();
    if (among[at].layer == op.layer && among[at].op == op.op) return at;
  }
  return std::nullopt;
}

// Names in d the first operator, by position up to `last` and then in the order they run, that gave something else.
void first_difference(const Trace& want, const Trace& got, int32_t last, VerifyDifference& d) {
  for (const auto& [position, ops] : got) {
    const auto known = want.find(position);
    if (position > last || known == want.end()) continue;
    size_t best = known->second.size();
    for (size_t i = 0; i < ops.size(); i++) {
      const auto at = place_of(ops[i], known->second, i);
      if (at && *at < best && known->second[*at].digest != ops[i].digest) best = *at;
    }
    if (best == known->second.size()) continue;
    d.position = position;
    d.layer = known->second[best].layer;
    d.op = known->second[best].op;
    return;
  }
}

// A shuffle that is the same on every machine.
std::vector<size_t> shuffled(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = count; i > 1; i--) {
    const uint32_t r = numerics::philox4x32(seed, {{static_cast<uint32_t>(i), 0, 0, 0}}).w[0];
    std::swap(order[i - 1], order[r % i]);
  }
  return order;
}

}  // namespace

struct Verifier::Trail {
  std::vector<int32_t> tokens;
  std::map<int32_t, std::vector<float>> logits;  // by position
};

namespace {

// What one run reports of each prompt's copies.
struct Listener {
  std::function<void(size_t prompt, int32_t position, std::span<const float> logits)> on_logits;
  std::function<void(size_t prompt, const std::vector<TokenOutput>& tokens)> on_tokens;
  // Every operator's output for one position; slow.
  std::function<void(size_t prompt, int32_t position, int64_t layer, std::string_view op,
                     std::span<const std::byte> output)>
      on_op;
};

// Submits the prompts (copies too, so that every batch is full), runs them, reports.
void play_once(Engine& engine, const VerifySetting& setting, const std::vector<Request>& requests,
               const Listener& listener) {
  const size_t copies =
      std::max<size_t>(1, (static_cast<size_t>(setting.batch) + requests.size() - 1) / requests.size());
  std::vector<size_t> order(requests.size() * copies);
  std::iota(order.begin(), order.end(), size_t{0});
  if (setting.shuffle) order = shuffled(order.size(), 7);
  std::map<RequestId, size_t> prompt_of;
  if (listener.on_op) {
    engine.decoder().set_tracer(
        [&](int64_t layer, std::string_view op, const void* data, DType type, int64_t, int64_t columns) {
          const auto& rows = engine.step_rows();
          const size_t row_bytes = dtype_bytes(type, static_cast<size_t>(columns));
          std::vector<std::byte> host(rows.size() * row_bytes);
          engine.backend().download(host.data(), data, host.size());
          for (size_t i = 0; i < rows.size(); i++) {
            const auto output = std::span(host).subspan(i * row_bytes, row_bytes);
            listener.on_op(prompt_of.at(rows[i].request), rows[i].position, layer, op, output);
          }
        });
  }
  for (size_t i : order) {
    const size_t prompt = i % requests.size();
    Request r = requests[prompt];
    if (listener.on_logits) {
      r.on_logits = [&listener, prompt](int32_t position, std::span<const float> logits) {
        listener.on_logits(prompt, position, logits);
      };
    }
    prompt_of[engine.submit(std::move(r))] = prompt;
  }
  engine.run_until_idle();
  engine.decoder().set_tracer({});
  for (const auto& [id, prompt] : prompt_of) {
    const Result result = engine.take(id).value();
    if (result.reason == FinishReason::kError) throw Error(ErrorCode::kNumerical, result.error);
    if (listener.on_tokens) listener.on_tokens(prompt, result.tokens);
  }
}

}  // namespace

Verifier::Verifier(std::shared_ptr<const Checkpoint> file, BackendFactory factory, std::vector<VerifyBackend> backends,
                   const VerifyOptions& options)
    : file_(std::move(file)), factory_(std::move(factory)), backends_(std::move(backends)), options_(options) {}

Verifier::~Verifier() = default;

std::vector<VerifySetting> Verifier::settings() const {
  std::vector<VerifySetting> all;
  for (int32_t b : options_.batches) {
    if (b > 1) all.push_back({.name = fmt::format("batch of {}", b), .batch = b});
  }
  for (int32_t b : options_.batches) {
    if (b > 1) all.push_back({.name = fmt::format("batch of {}, order shuffled", b), .batch = b, .shuffle = true});
  }
  for (int32_t c : options_.chunks)
    all.push_back({.name = fmt::format("prefill in chunks of {}", c), .batch = 2, .chunk = c});
  all.push_back({.name = "prefix cache cold", .batch = 3});
  all.push_back({.name = "prefix cache warm", .batch = 3, .warm_cache = true});
  all.push_back({.name = "evicted and recomputed", .batch = 7, .chunk = 16, .starve_cache = true});
  all.push_back({.name = "decoded tokens as one prefill", .batch = 1, .as_prefill = true});
  for (const VerifyBackend& b : backends_) {
    if (b.kind != 0) all.push_back({.name = b.name, .batch = 3, .backend = b.kind});
  }
  return all;
}

std::vector<Request> Verifier::make_requests(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                                             bool sampled) const {
  std::vector<Request> requests;
  for (size_t i = 0; i < prompts.size(); i++) {
    requests.push_back(verify_request(prompts[i], i, sampled, options_));
    if (!setting.as_prefill) continue;
    const auto& answer = (sampled ? seeded_ : greedy_)[i].tokens;
    requests[i].prompt.insert(requests[i].prompt.end(), answer.begin(), answer.end());
    requests[i].max_tokens = 0;
  }
  return requests;
}

std::unique_ptr<Engine> Verifier::make_engine(const VerifySetting& setting,
                                              const std::vector<Request>& requests) const {
  size_t prompt = 0;
  for (const Request& r : requests) prompt = std::max(prompt, r.prompt.size());
  const int64_t longest = static_cast<int64_t>(prompt) + options_.decode_tokens + 1;
  EngineOptions o;
  o.context = static_cast<int32_t>(longest);
  o.max_requests = setting.batch;
  o.tokens_per_step = std::max(512, setting.batch);
  o.chunk = setting.chunk;
  o.prefix_cache = setting.warm_cache || setting.starve_cache;
  if (setting.starve_cache) o.pages = static_cast<int32_t>(longest / o.page_size + 3);
  return std::make_unique<Engine>(factory_(setting.backend), file_, o);
}

std::vector<Verifier::Trail> Verifier::play(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                                            bool sampled) const {
  std::vector<Trail> trails(prompts.size());
  const std::vector<Request> requests = make_requests(setting, prompts, sampled);
  const auto engine = make_engine(setting, requests);
  Listener listener;
  listener.on_logits = [&](size_t prompt, int32_t position, std::span<const float> logits) {
    trails[prompt].logits[position].assign(logits.begin(), logits.end());
  };
  listener.on_tokens = [&](size_t prompt, const std::vector<TokenOutput>& tokens) {
    for (const TokenOutput& t : tokens) trails[prompt].tokens.push_back(t.token);
  };
  play_once(*engine, setting, requests, listener);
  return trails;
}

VerifyRow Verifier::compare(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                            bool sampled) const {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<Trail>& baseline = sampled ? seeded_ : greedy_;
  VerifyRow row;
  row.setting = setting;
  row.sampled = sampled;
  const std::vector<Request> requests = make_requests(setting, prompts, sampled);
  const auto engine = make_engine(setting, requests);
  std::map<size_t, VerifyDifference> first;
  const auto differs = [&](size_t prompt, int32_t position, const char* what) {
    // A token comes before the logits of its own position, which follow from it.
    VerifyDifference& d = first[prompt];
    if (!d.prompt.empty() && (d.position < position || (d.position == position && d.what == "token"))) return;
    d.prompt = prompts[prompt].name;
    d.position = position;
    d.what = what;
  };
  Listener listener;
  listener.on_logits = [&](size_t prompt, int32_t position, std::span<const float> logits) {
    const auto known = baseline[prompt].logits.find(position);
    if (known == baseline[prompt].logits.end()) return;  // beyond the baseline's answer: its last token has no logits
    row.positions++;
    if (std::memcmp(known->second.data(), logits.data(), logits.size_bytes()) != 0) differs(prompt, position, "logits");
  };
  listener.on_tokens = [&](size_t prompt, const std::vector<TokenOutput>& tokens) {
    if (setting.as_prefill) return;
    const auto& known = baseline[prompt].tokens;
    for (size_t i = 0; i < std::max(tokens.size(), known.size()); i++) {
      if (i < tokens.size() && i < known.size() && tokens[i].token == known[i]) continue;
      differs(prompt, static_cast<int32_t>(prompts[prompt].tokens.size() + i), "token");
      break;
    }
  };
  if (setting.warm_cache) play_once(*engine, setting, requests, {});
  play_once(*engine, setting, requests, listener);
  if (!first.empty()) locate(setting, prompts, sampled, first);
  for (const auto& [prompt, d] : first) row.differences.push_back(d);
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return row;
}

// Runs the baseline and the setting again with every operator traced, and names the first output of each prompt that
// differs.
void Verifier::locate(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts, bool sampled,
                      std::map<size_t, VerifyDifference>& differences) const {
  const auto traces_of = [&](const VerifySetting& s) {
    const std::vector<Request> requests = make_requests(s, prompts, sampled);
    const auto engine = make_engine(s, requests);
    std::map<size_t, Trace> traces;
    Listener listener;
    listener.on_op = [&](size_t prompt, int32_t position, int64_t layer, std::string_view op,
                         std::span<const std::byte> output) {
      if (differences.contains(prompt)) traces[prompt][position].push_back({layer, std::string(op), digest_of(output)});
    };
    listener.on_logits = [&](size_t prompt, int32_t position, std::span<const float> logits) {
      if (differences.contains(prompt))
        traces[prompt][position].push_back({-1, kHead, digest_of(std::as_bytes(logits))});
    };
    if (s.warm_cache) play_once(*engine, s, requests, listener);
    play_once(*engine, s, requests, listener);
    return traces;
  };
  std::map<size_t, Trace> want = traces_of({.name = "baseline"}), got = traces_of(setting);
  for (auto& [prompt, d] : differences) {
    // A token is sampled from the logits of the position before it.
    const bool token = d.what == "token";
    d.layer = -1;
    first_difference(want[prompt], got[prompt], token ? d.position - 1 : d.position, d);
    if (d.op.empty() && token) d.op = kSample;
  }
}

std::vector<VerifyRow> Verifier::run(const std::vector<VerifyPrompt>& prompts,
                                     const std::function<void(const VerifyRow&)>& on_row) {
  require(!prompts.empty(), "verify: no prompts");
  const VerifySetting alone{.name = "baseline: one prompt alone, one prefill, no cache"};
  greedy_ = play(alone, prompts, false);
  seeded_ = play(alone, prompts, true);
  std::vector<VerifyRow> rows;
  for (const VerifySetting& s : settings()) {
    for (const bool sampled : {false, true}) {
      rows.push_back(compare(s, prompts, sampled));
      if (on_row) on_row(rows.back());
    }
  }
  return rows;
}

}  // namespace isobit
