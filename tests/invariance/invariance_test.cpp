// Rule N22 on a whole engine: batch, order, chunks, pages, caches, neighbours, threads and SIMD targets leave every bit
// of a request's logits, tokens and log-probabilities where it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/tiny_model.h"
#include "engine/trail.h"
#include "numerics/testing.h"

namespace isobit::test {
namespace {

using isobit::testing::cases;
using isobit::testing::Random;

constexpr int32_t kContext = 256;
constexpr int32_t kVocab = 300;

std::vector<int32_t> random_tokens(Random& random, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; i++) tokens.push_back(random.below(kVocab));
  return tokens;
}

// Short and long prompts, some with a prefix in common; greedy ones and ones with every sampling setting in use.
std::vector<Request> random_requests(Random& random, size_t count, int longest = 150) {
  const std::vector<int32_t> prefix = random_tokens(random, 40);
  std::vector<Request> requests;
  for (size_t i = 0; i < count; i++) {
    Request r;
    if (i % 3 == 1) r.prompt.assign(prefix.begin(), prefix.begin() + 1 + random.below(40));
    const auto own = random_tokens(random, 1 + random.below(i % 4 == 0 ? 4 : longest - 40));
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    r.max_tokens = random.below(20);
    r.sampling.temperature = 0;
    r.sampling.top_logprobs = 0;
    if (i % 2 == 1) {
      r.sampling.temperature = 0.9f;
      r.sampling.seed = random.bits();
      r.sampling.top_k = random.below(3) == 0 ? 0 : 50;
      r.sampling.top_p = 0.97f;
      r.sampling.repetition_penalty = 1.2f;
      r.sampling.presence_penalty = 0.3f;
      r.sampling.frequency_penalty = 0.2f;
      r.sampling.logit_bias = {{random.below(kVocab), 3.0f}};
    }
    r.prompt_logprobs = random.below(3) == 0;
    requests.push_back(std::move(r));
  }
  return requests;
}

class Invariance : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    file_ = std::make_unique<TinyFile>();
    random_ = std::make_unique<Random>();
    requests_ = random_requests(*random_, 12);
    baseline_.clear();
    for (const Request& r : requests_) baseline_.push_back(alone(*file_, r, kContext));
  }
  static void TearDownTestSuite() {
    file_.reset();
    random_.reset();
  }

  // The baseline: by itself, one prefill, no cache, one thread.
  static Trail alone(const TinyFile& file, const Request& r, int32_t context) {
    EngineOptions o;
    o.context = context;
    o.max_requests = 1;
    o.tokens_per_step = context;
    o.prefix_cache = false;
    const auto engine = file.engine(o);
    return play(*engine, {r}).front();
  }

  static EngineOptions options() {
    EngineOptions o;
    o.context = kContext;
    o.prefix_cache = false;
    return o;
  }

  static void expect_baseline(Engine& engine, const std::string& what) {
    const std::vector<Trail> got = play(engine, requests_);
    for (size_t i = 0; i < got.size(); i++)
      expect_same(baseline_[i], got[i], fmt::format("{}, request {}, {}", what, i, random_->note()));
  }
  static void expect_baseline(const EngineOptions& o, const std::string& what, int threads = 1,
                              const std::string& simd = {}) {
    const auto engine = file_->engine(o, threads, simd);
    expect_baseline(*engine, what);
  }

  static inline std::unique_ptr<TinyFile> file_;
  static inline std::unique_ptr<Random> random_;
  static inline std::vector<Request> requests_;
  static inline std::vector<Trail> baseline_;
};

TEST_F(Invariance, TheBaselineIsWorthComparingWith) {
  size_t rows = 0, tokens = 0;
  std::set<uint64_t> different;
  for (size_t i = 0; i < baseline_.size(); i++) {
    EXPECT_EQ(baseline_[i].reason, FinishReason::kLength);
    const int32_t answer = requests_[i].max_tokens;
    EXPECT_EQ(baseline_[i].tokens.size(), answer);
    EXPECT_EQ(baseline_[i].logits.size(), requests_[i].prompt.size() + static_cast<size_t>(std::max(0, answer - 1)));
    rows += baseline_[i].logits.size();
    tokens += baseline_[i].tokens.size();
    for (const auto& [position, digest] : baseline_[i].logits) different.insert(digest);
  }
  EXPECT_GT(tokens, 20) << random_->note();
  EXPECT_GT(different.size(), rows / 2) << "logits repeat: the model sees too little of its input";
}

TEST_F(Invariance, BatchSizes) {
  for (const int32_t batch : {2, 3, 7, 32}) {
    EngineOptions o = options();
    o.max_requests = batch;
    expect_baseline(o, fmt::format("batch of {}", batch));
  }
}

TEST_F(Invariance, Order) {
  std::vector<size_t> order(requests_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = order.size(); i > 1; i--)
    std::swap(order[i - 1], order[static_cast<size_t>(random_->below(static_cast<int>(i)))]);
  std::vector<Request> shuffled;
  for (const size_t i : order) shuffled.push_back(requests_[i]);
  EngineOptions o = options();
  o.max_requests = 5;
  const auto engine = file_->engine(o);
  const std::vector<Trail> got = play(*engine, shuffled);
  for (size_t i = 0; i < order.size(); i++) expect_same(baseline_[order[i]], got[i], random_->note());
}

TEST_F(Invariance, Chunks) {
  for (const int32_t chunk : {1, 3, 16, 37, 64}) {
    EngineOptions o = options();
    o.max_requests = 3;
    o.chunk = chunk;
    expect_baseline(o, fmt::format("chunks of {}", chunk));
  }
}

TEST_F(Invariance, StepBudgets) {
  for (const int32_t budget : {4, 9, 33}) {
    EngineOptions o = options();
    o.max_requests = 4;
    o.tokens_per_step = budget;
    expect_baseline(o, fmt::format("{} tokens a step", budget));
  }
}

TEST_F(Invariance, PageSizes) {
  for (const int32_t size : {1, 5, 16, 64}) {
    EngineOptions o = options();
    o.max_requests = 3;
    o.page_size = size;
    o.prefix_cache = true;
    expect_baseline(o, fmt::format("pages of {}", size));
  }
}

TEST_F(Invariance, PrefixCacheColdAndWarm) {
  EngineOptions o = options();
  o.max_requests = 4;
  o.prefix_cache = true;
  const auto engine = file_->engine(o);
  expect_baseline(*engine, "cold");
  const int64_t before = engine->stats().cached_tokens;
  expect_baseline(*engine, "warm");
  EXPECT_GT(engine->stats().cached_tokens, before + 100) << "nothing was found in the cache";
  engine->flush_prefix_cache();
  EXPECT_EQ(engine->stats().pages_free, engine->stats().pages_total);
  expect_baseline(*engine, "flushed");
}

TEST_F(Invariance, EvictedAndPreempted) {
  for (const bool cache : {false, true}) {
    EngineOptions o = options();
    o.max_requests = 7;
    o.chunk = 16;
    o.prefix_cache = cache;
    o.pages = kContext / o.page_size;  // one full context for seven requests
    const auto engine = file_->engine(o);
    expect_baseline(*engine, fmt::format("starved, prefix cache {}", cache));
    EXPECT_GT(engine->stats().preemptions, 0);
    if (cache) {
      EXPECT_GT(engine->stats().evicted_pages, 0);
    }
  }
}

TEST_F(Invariance, NeighboursCancelledMidway) {
  EngineOptions o = options();
  o.max_requests = 8;
  o.chunk = 16;
  const auto engine = file_->engine(o);
  std::vector<Trail> trails(requests_.size());
  std::vector<RequestId> ids;
  std::vector<RequestId> neighbours;
  for (size_t i = 0; i < requests_.size(); i++) {
    Request neighbour = requests_[(i + 5) % requests_.size()];
    neighbour.max_tokens = 50;
    neighbours.push_back(engine->submit(neighbour));
    ids.push_back(engine->submit(observed(requests_[i], trails[i])));
  }
  int step = 0;
  size_t cancelled = 0;
  while (engine->step()) {
    expect_pages_add_up(engine->stats());
    if (++step % 2 == 0 && cancelled < neighbours.size()) engine->cancel(neighbours[cancelled++]);
  }
  EXPECT_EQ(cancelled, neighbours.size());
  size_t ended_early = 0;
  for (const RequestId id : neighbours)
    ended_early += engine->take(id).value().reason == FinishReason::kCancelled ? 1 : 0;
  EXPECT_GT(ended_early, 2);
  for (size_t i = 0; i < ids.size(); i++) {
    settle(trails[i], engine->take(ids[i]).value());
    expect_same(baseline_[i], trails[i], random_->note());
  }
}

TEST_F(Invariance, Priorities) {
  std::vector<Request> requests = requests_;
  for (Request& r : requests) r.priority = random_->below(3) - 1;
  EngineOptions o = options();
  o.max_requests = 2;
  const auto engine = file_->engine(o);
  const std::vector<Trail> got = play(*engine, requests);
  for (size_t i = 0; i < got.size(); i++) expect_same(baseline_[i], got[i], random_->note());
}

TEST_F(Invariance, Threads) {
  for (const int threads : {2, 3}) {
    EngineOptions o = options();
    o.max_requests = 4;
    expect_baseline(o, fmt::format("{} threads", threads), threads);
  }
}

TEST_F(Invariance, SimdTargets) {
  for (const std::string& target : cpu_simd_targets()) {
    EngineOptions o = options();
    o.max_requests = 3;
    expect_baseline(o, target, 1, target);
  }
}

TEST_F(Invariance, DecodedTokensAsOnePrefill) {
  for (size_t i = 0; i < requests_.size(); i++) {
    Request replay = requests_[i];
    replay.prompt.insert(replay.prompt.end(), baseline_[i].tokens.begin(), baseline_[i].tokens.end());
    replay.max_tokens = 0;
    const Trail got = alone(*file_, replay, kContext);
    for (const auto& [position, digest] : baseline_[i].logits) {
      ASSERT_TRUE(got.logits.contains(position));
      EXPECT_EQ(got.logits.at(position), digest) << "request " << i << ", position " << position << random_->note();
    }
  }
}

// Everything at once, chosen at random; requests arrive while others run.
TEST_F(Invariance, RandomSettings) {
  const std::vector<std::string> targets = cpu_simd_targets();
  for (int round = 0; round < cases(12); round++) {
    EngineOptions o = options();
    o.max_requests = 1 + random_->below(12);
    o.tokens_per_step = o.max_requests + random_->below(200);
    o.chunk = random_->below(2) == 0 ? 0 : 1 + random_->below(100);
    o.page_size = 1 + random_->below(32);
    o.prefix_cache = random_->below(4) != 0;
    const int32_t whole = (kContext + o.page_size - 1) / o.page_size;
    if (random_->below(2) == 0) o.pages = whole + random_->below(whole);
    const int threads = 1 + random_->below(2);
    const std::string target =
        random_->below(2) == 0 ? "" : targets[static_cast<size_t>(random_->below(static_cast<int>(targets.size())))];
    SCOPED_TRACE(
        fmt::format("{}, round {}: {} requests, {} tokens a step, chunk {}, page {}, {} pages, cache {}, {} "
                    "threads, {}",
                    random_->note(), round, o.max_requests, o.tokens_per_step, o.chunk, o.page_size, o.pages,
                    o.prefix_cache, threads, target));
    const auto engine = file_->engine(o, threads, target);
    std::vector<std::pair<size_t, std::unique_ptr<Trail>>> trails;
    std::vector<RequestId> ids;
    for (int i = 0; i < 20; i++) {
      const auto which = static_cast<size_t>(random_->below(static_cast<int>(requests_.size())));
      trails.emplace_back(which, std::make_unique<Trail>());
      ids.push_back(engine->submit(observed(requests_[which], *trails.back().second)));
      for (int s = random_->below(4); s > 0; s--) {
        engine->step();
        expect_pages_add_up(engine->stats());
      }
    }
    run_checked(*engine);
    for (size_t i = 0; i < ids.size(); i++) {
      settle(*trails[i].second, engine->take(ids[i]).value());
      expect_same(baseline_[trails[i].first], *trails[i].second, fmt::format("request {}", trails[i].first));
    }
    if (HasFailure()) return;
  }
}

// Other families and formats: biases and split rotary halves, norms of q and k, tied embeddings, K in chunks (N7).
TEST(InvarianceOfFamilies, BatchChunksAndCache) {
  Random random;
  for (const std::string architecture : {"qwen2", "qwen3", "llama"}) {
    TinyModel model{.seed = random.bits(), .architecture = architecture};
    if (architecture == "llama") {
      model.ffn = 2112;  // the down projection is narrow and deep: two chunks of K
      model.layers = 1;
      model.tied = true;
    }
    const TinyFile file(model);
    const std::vector<Request> requests = random_requests(random, 5, 90);
    EngineOptions o;
    o.context = kContext;
    o.max_requests = 1;
    o.prefix_cache = false;
    std::vector<Trail> want;
    for (const Request& r : requests) want.push_back(play(*file.engine(o), {r}).front());
    o.max_requests = 3;
    o.chunk = 7;
    o.prefix_cache = true;
    const auto engine = file.engine(o, 2);
    for (const char* state : {"cold", "warm"}) {
      const std::vector<Trail> got = play(*engine, requests);
      for (size_t i = 0; i < got.size(); i++)
        expect_same(want[i], got[i], fmt::format("{}, {}, request {}, {}", architecture, state, i, random.note()));
    }
  }
}

// Past a super-block of 2048 keys (N10), where partial results are folded.
TEST(InvarianceOfLongContexts, AcrossASuperBlock) {
  Random random;
  const TinyFile file({.seed = random.bits(), .layers = 1, .context = 4096});
  Request r;
  r.prompt = random_tokens(random, 2040);
  r.max_tokens = 20;
  r.sampling.temperature = 0;
  r.sampling.top_logprobs = 0;
  EngineOptions o;
  o.context = 2100;
  o.max_requests = 2;
  o.prefix_cache = false;
  o.tokens_per_step = 2100;
  std::vector<RequestId> ids;
  const auto run = [&](const EngineOptions& options, const Request& request) {
    const auto engine = file.engine(options, 2);
    const RequestId id = engine->submit(request);
    engine->run_until_idle();
    return engine->take(id).value();
  };
  const Result decoded = run(o, r);
  ASSERT_EQ(decoded.tokens.size(), 20);
  Request replay = r;
  for (const TokenOutput& t : decoded.tokens) replay.prompt.push_back(t.token);
  replay.max_tokens = 0;
  replay.prompt_logprobs = true;
  o.chunk = 61;
  const Result scored = run(o, replay);
  for (size_t i = 0; i < 20; i++) {
    EXPECT_EQ(std::bit_cast<uint32_t>(scored.prompt_logprobs[2039 + i]),
              std::bit_cast<uint32_t>(decoded.tokens[i].logprob))
        << "token " << i << ", " << random.note();
  }
}

// What reinforcement learning asks for: the log-probabilities reported while sampling are those of scoring, exactly.
TEST(ScoreEqualsSampling, TenThousandTokens) {
  Random random;
  const TinyFile file({.seed = random.bits()});
  EngineOptions o;
  o.context = 512;
  o.max_requests = 11;
  const auto sampler = file.engine(o, 2);
  std::vector<RequestId> ids;
  std::vector<std::vector<int32_t>> texts;
  const int sequences = cases(22);
  for (int i = 0; i < sequences; i++) {
    Request r;
    r.prompt = random_tokens(random, 1 + random.below(40));
    r.max_tokens = 460;
    r.sampling.temperature = i % 2 == 0 ? 1.0f : 0.7f;  // raw log-probabilities either way
    r.sampling.top_p = i % 3 == 0 ? 0.9f : 1.0f;
    r.sampling.seed = random.bits();
    r.sampling.top_logprobs = 0;
    texts.push_back(r.prompt);
    ids.push_back(sampler->submit(std::move(r)));
  }
  run_checked(*sampler);
  o.max_requests = 2;
  o.prefix_cache = false;
  const auto scorer = file.engine(o);
  int64_t compared = 0;
  for (size_t i = 0; i < ids.size(); i++) {
    const Result sampled = sampler->take(ids[i]).value();
    ASSERT_EQ(sampled.tokens.size(), 460) << sampled.error;
    Request score;
    score.prompt = texts[i];
    for (const TokenOutput& t : sampled.tokens) score.prompt.push_back(t.token);
    score.max_tokens = 0;
    score.prompt_logprobs = true;
    const RequestId id = scorer->submit(std::move(score));
    run_checked(*scorer);
    const Result scored = scorer->take(id).value();
    ASSERT_EQ(scored.prompt_logprobs.size(), texts[i].size() + 459);
    for (size_t t = 0; t < sampled.tokens.size(); t++, compared++) {
      const float want = sampled.tokens[t].logprob, got = scored.prompt_logprobs[texts[i].size() - 1 + t];
      ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want))
          << "sequence " << i << ", token " << t << ": " << got << " scored, " << want << " sampled, " << random.note();
    }
  }
  EXPECT_EQ(compared, sequences * 460);
}

}  // namespace
}  // namespace isobit::test
