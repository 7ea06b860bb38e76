#include "engine/verify.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>
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
  std::map<int32_t, std::vector<float>> residual, logits;  // by position
};

// Each is called with the index of the request, be it the first copy or another.
struct Verifier::Listener {
  using Row = std::function<void(size_t request, int32_t position, std::span<const float> row)>;
  Row on_residual, on_logits;
  std::function<void(size_t request, const std::vector<TokenOutput>& tokens)> on_tokens;
  // Every operator's output for one position; slow.
  std::function<void(size_t request, int32_t position, int64_t layer, std::string_view op,
                     std::span<const std::byte> output)>
      on_op;
};

namespace {

constexpr int32_t kPromptLogits = 4;  // of a prompt's last positions the logits are compared
constexpr int32_t kBriefTokens = 4, kBriefPrompts = 3;
constexpr int32_t kFewAtOnce = 8;     // where the batch is not what is tried: they share what reading weights costs
constexpr size_t kBriefPrompt = 128;  // tokens

// Which request each submission is: all of them, then copies, of short prompts first, until a batch is full.
std::vector<size_t> submissions(const std::vector<Request>& requests, const VerifySetting& setting) {
  std::vector<size_t> by_length(requests.size());
  std::iota(by_length.begin(), by_length.end(), size_t{0});
  std::vector<size_t> all = by_length;
  std::ranges::stable_sort(by_length, {}, [&](size_t i) { return requests[i].prompt.size(); });
  while (all.size() < static_cast<size_t>(setting.batch))
    all.push_back(by_length[(all.size() - requests.size()) % requests.size()]);
  if (!setting.shuffle) return all;
  std::vector<size_t> order = shuffled(all.size(), 7);
  for (size_t& i : order) i = all[i];
  return order;
}

// What of two things that differ comes first: a token is drawn before the position is computed that it stands at.
int order_of(std::string_view what) { return what == "token" ? 0 : what == "residual" ? 1 : 2; }

}  // namespace

Verifier::Verifier(std::shared_ptr<const Checkpoint> file, BackendFactory factory, std::vector<VerifyBackend> backends,
                   const VerifyOptions& options)
    : file_(std::move(file)), factory_(std::move(factory)), backends_(std::move(backends)), options_(options) {}

Verifier::~Verifier() = default;

// Each batch in order; then again, shuffled, with the prompts in chunks: what two freedoms at once leave equal neither
// of them moves, and where both do not matter a run for each would say no more.
std::vector<VerifySetting> Verifier::settings() const {
  std::vector<VerifySetting> all;
  std::vector<int32_t> batches;
  std::ranges::copy_if(options_.batches, std::back_inserter(batches), [](int32_t b) { return b > 1; });
  all.reserve(batches.size());
  for (const int32_t b : batches) all.push_back({.name = fmt::format("batch of {}", b), .batch = b});
  if (batches.empty()) batches = {kFewAtOnce};
  const std::vector<int32_t>& chunks = options_.chunks;
  for (size_t i = 0; !chunks.empty() && i < std::max(batches.size(), chunks.size()); i++) {
    const int32_t batch = batches[i % batches.size()], chunk = chunks[i % chunks.size()];
    all.push_back({.name = fmt::format("batch of {}, shuffled, chunks of {}", batch, chunk),
                   .batch = batch,
                   .chunk = chunk,
                   .shuffle = true});
  }
  all.push_back({.name = "prefix cache cold", .batch = kFewAtOnce, .cache = true});
  all.push_back({.name = "prefix cache warm", .batch = kFewAtOnce, .cache = true, .warm_cache = true});
  all.push_back({.name = "evicted and recomputed", .batch = 7, .chunk = 16, .cache = true, .starve_cache = true});
  all.push_back({.name = "decoded tokens as one prefill", .batch = 1, .as_prefill = true});
  for (const VerifyBackend& b : backends_) {
    if (b.kind == 0) continue;
    all.push_back({.name = b.name, .batch = b.slow ? kBriefPrompts : kFewAtOnce, .brief = b.slow, .backend = b.kind});
  }
  return all;
}

// Brief: the two shortest prompts and the longest of at most kBriefPrompt tokens, greedily.
std::vector<Verifier::Answer> Verifier::answers(const std::vector<VerifyPrompt>& prompts, bool brief) const {
  std::vector<size_t> by_length(prompts.size());
  std::iota(by_length.begin(), by_length.end(), size_t{0});
  const auto length = [&](size_t i) { return prompts[i].tokens.size(); };
  std::ranges::stable_sort(by_length, {}, length);
  if (brief && by_length.size() > 2) {
    const auto end =
        std::find_if(by_length.begin() + 2, by_length.end(), [&](size_t i) { return length(i) > kBriefPrompt; });
    by_length.erase(end, by_length.end());
    if (by_length.size() > kBriefPrompts) by_length.erase(by_length.begin() + 2, by_length.end() - 1);
  }
  const size_t longest = std::max(static_cast<size_t>(options_.seeded_up_to), length(by_length.front()));
  std::vector<Answer> all;
  for (const bool sampled : {false, true}) {
    for (const size_t i : by_length) {
      if (!sampled || (!brief && length(i) <= longest)) all.push_back({i, sampled});
    }
  }
  std::sort(all.begin(), all.end());
  return all;
}

std::vector<Request> Verifier::make_requests(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                                             const std::vector<Answer>& answers) const {
  std::vector<Request> requests;
  for (const Answer& a : answers) {
    Request& r = requests.emplace_back(verify_request(prompts[a.prompt], a.prompt, a.sampled, options_));
    r.logits_from = std::max(0, static_cast<int32_t>(r.prompt.size()) - kPromptLogits);
    if (setting.brief) r.max_tokens = std::min(r.max_tokens, kBriefTokens);
    if (!setting.as_prefill) continue;
    const std::vector<int32_t>& answer = baseline_.at(a).tokens;
    r.prompt.insert(r.prompt.end(), answer.begin(), answer.end());
    r.max_tokens = 0;
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
  o.prefix_cache = setting.cache;
  o.compute = options_.compute;
  o.kv_cache = options_.kv_cache;
  if (setting.starve_cache) o.pages = static_cast<int32_t>(longest / o.page_size + 3);
  return std::make_unique<Engine>(factory_(setting.backend), file_, o);
}

// Submits the requests (copies too, so that a batch is full), runs them, reports. Returns how many answers were made.
int32_t Verifier::play(Engine& engine, const VerifySetting& setting, const std::vector<Request>& requests,
                       const Listener& listener) const {
  std::map<RequestId, size_t> request_of;
  if (listener.on_op) {
    engine.decoder().set_tracer(
        [&](int64_t layer, std::string_view op, const void* data, DType type, int64_t, int64_t columns) {
          const auto& rows = engine.step_rows();
          const size_t row_bytes = dtype_bytes(type, static_cast<size_t>(columns));
          std::vector<std::byte> host(rows.size() * row_bytes);
          engine.backend().download(host.data(), data, host.size());
          for (size_t i = 0; i < rows.size(); i++) {
            const auto output = std::span(host).subspan(i * row_bytes, row_bytes);
            listener.on_op(request_of.at(rows[i].request), rows[i].position, layer, op, output);
          }
        });
  }
  const auto bound = [](const Listener::Row& row, size_t request) {
    std::function<void(int32_t, std::span<const float>)> one;
    if (row) one = [&row, request](int32_t position, std::span<const float> values) { row(request, position, values); };
    return one;
  };
  for (const size_t i : submissions(requests, setting)) {
    Request r = requests[i];
    r.on_residual = bound(listener.on_residual, i);
    r.on_logits = bound(listener.on_logits, i);
    request_of[engine.submit(std::move(r))] = i;
  }
  engine.run_until_idle();
  engine.decoder().set_tracer({});
  for (const auto& [id, i] : request_of) {
    const Result result = engine.take(id).value();
    if (result.reason == FinishReason::kError) throw Error(ErrorCode::kNumerical, result.error);
    if (listener.on_tokens) listener.on_tokens(i, result.tokens);
  }
  return static_cast<int32_t>(request_of.size());
}

std::map<Verifier::Answer, Verifier::Trail> Verifier::record(const VerifySetting& setting,
                                                             const std::vector<VerifyPrompt>& prompts) const {
  const std::vector<Answer> all = answers(prompts, false);
  const std::vector<Request> requests = make_requests(setting, prompts, all);
  std::map<Answer, Trail> trails;
  Listener listener;
  listener.on_residual = [&](size_t i, int32_t position, std::span<const float> row) {
    trails[all[i]].residual[position].assign(row.begin(), row.end());
  };
  listener.on_logits = [&](size_t i, int32_t position, std::span<const float> row) {
    trails[all[i]].logits[position].assign(row.begin(), row.end());
  };
  listener.on_tokens = [&](size_t i, const std::vector<TokenOutput>& tokens) {
    for (const TokenOutput& t : tokens) trails[all[i]].tokens.push_back(t.token);
  };
  play(*make_engine(setting, requests), setting, requests, listener);
  return trails;
}

// engine: the last setting's, which a warm cache goes on with; becomes this one's.
VerifyRow Verifier::compare(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                            std::unique_ptr<Engine>& engine) const {
  const auto start = std::chrono::steady_clock::now();
  VerifyRow row;
  row.setting = setting;
  const std::vector<Answer> all = answers(prompts, setting.brief);
  const std::vector<Request> requests = make_requests(setting, prompts, all);
  if (!setting.warm_cache) {
    engine.reset();  // before its successor takes memory too
    engine = make_engine(setting, requests);
  }
  std::map<Answer, VerifyDifference> first;
  const auto differs = [&](const Answer& a, int32_t position, const char* what) {
    VerifyDifference& d = first[a];
    const auto place = [](int32_t at, std::string_view of) { return std::pair(at, order_of(of)); };
    if (!d.prompt.empty() && place(d.position, d.what) <= place(position, what)) return;
    d = {.prompt = prompts[a.prompt].name, .sampled = a.sampled, .position = position, .op = {}, .what = what};
  };
  const auto comparing = [&](auto Trail::*rows, const char* what, int64_t& count) -> Listener::Row {
    return [&, rows, what](size_t i, int32_t position, std::span<const float> got) {
      const auto& known = baseline_.at(all[i]).*rows;
      const auto want = known.find(position);
      if (want == known.end()) return;  // beyond the baseline's answer, whose last token is not computed
      count++;
      if (std::memcmp(want->second.data(), got.data(), got.size_bytes()) != 0) differs(all[i], position, what);
    };
  };
  Listener listener;
  listener.on_residual = comparing(&Trail::residual, "residual", row.positions);
  listener.on_logits = comparing(&Trail::logits, "logits", row.logit_rows);
  listener.on_tokens = [&](size_t i, const std::vector<TokenOutput>& tokens) {
    if (setting.as_prefill) return;
    std::span<const int32_t> known = baseline_.at(all[i]).tokens;
    known = known.first(std::min(known.size(), static_cast<size_t>(requests[i].max_tokens)));
    for (size_t n = 0; n < std::max(tokens.size(), known.size()); n++) {
      if (n < tokens.size() && n < known.size() && tokens[n].token == known[n]) continue;
      differs(all[i], static_cast<int32_t>(requests[i].prompt.size() + n), "token");
      break;
    }
  };
  row.answers = play(*engine, setting, requests, listener);
  if (!first.empty()) locate(setting, prompts, first);
  for (const auto& [answer, d] : first) row.differences.push_back(d);
  row.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return row;
}

// Runs the baseline and the setting again with every operator traced, and names the first output of each answer that
// differs.
void Verifier::locate(const VerifySetting& setting, const std::vector<VerifyPrompt>& prompts,
                      std::map<Answer, VerifyDifference>& differences) const {
  const std::vector<Answer> all = answers(prompts, setting.brief);
  const auto traces_of = [&](const VerifySetting& s) {
    const std::vector<Request> requests = make_requests(s, prompts, all);
    const auto engine = make_engine(s, requests);
    std::map<Answer, Trace> traces;
    Listener listener;
    const auto add = [&](size_t i, int32_t position, int64_t layer, std::string_view op,
                         std::span<const std::byte> output) {
      if (!differences.contains(all[i])) return;
      traces[all[i]][position].push_back({layer, std::string(op), digest_of(output)});
    };
    listener.on_op = add;
    listener.on_logits = [&](size_t i, int32_t position, std::span<const float> logits) {
      add(i, position, -1, kHead, std::as_bytes(logits));
    };
    if (s.warm_cache) play(*engine, s, requests, listener);
    play(*engine, s, requests, listener);
    return traces;
  };
  std::map<Answer, Trace> want = traces_of({.name = "baseline", .brief = setting.brief}), got = traces_of(setting);
  for (auto& [answer, d] : differences) {
    // A token is sampled from the logits of the position before it.
    const bool token = d.what == "token";
    d.layer = -1;
    first_difference(want[answer], got[answer], token ? d.position - 1 : d.position, d);
    if (d.op.empty() && token) d.op = kSample;
  }
}

std::vector<VerifyRow> Verifier::run(const std::vector<VerifyPrompt>& prompts,
                                     const std::function<void(const VerifyRow&)>& on_row) {
  require(!prompts.empty(), "verify: no prompts");
  baseline_ = record({.name = "baseline: one prompt alone, one prefill, no cache"}, prompts);
  std::vector<VerifyRow> rows;
  std::unique_ptr<Engine> engine;
  for (const VerifySetting& s : settings()) {
    rows.push_back(compare(s, prompts, engine));
    if (on_row) on_row(rows.back());
  }
  return rows;
}

}  // namespace isobit
