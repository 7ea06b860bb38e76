// Users who come and go: whatever the others do, each one's tokens, log-probabilities and logits are those of its run
// alone. Requests arrive from several threads while the engine steps on its own. ISOBIT_TEST_DEVICE=cuda runs the users
// on a GPU, against their runs alone on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <thread>

#include "engine/engine_thread.h"
#include "engine/tiny_model.h"
#include "engine/trail.h"
#include "numerics/testing.h"

namespace isobit::test {
namespace {

using isobit::testing::cases;
using isobit::testing::Random;

constexpr int32_t kContext = 128, kVocabulary = 300;

std::vector<int32_t> some_tokens(Random& random, int count) {
  std::vector<int32_t> all;
  for (int i = 0; i < count; i++) all.push_back(random.below(kVocabulary));
  return all;
}

// Some share prefixes, some repeat themselves (where lookup finds drafts), some are choices of one request.
std::vector<Request> users(Random& random, size_t count) {
  const std::vector<int32_t> system = some_tokens(random, 40);
  std::vector<Request> all;
  while (all.size() < count) {
    Request r;
    if (random.below(3) == 0) r.prompt.assign(system.begin(), system.begin() + 1 + random.below(40));
    const auto own = some_tokens(random, 1 + random.below(12));
    for (int i = 1 + random.below(4); i > 0; i--) r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    r.max_tokens = 1 + random.below(30);
    r.digest_logits = random.below(2) == 0;
    r.sampling.top_logprobs = random.below(3);
    r.sampling.temperature = random.below(2) == 0 ? 0.0f : 0.7f;
    r.sampling.seed = random.bits();
    if (random.below(3) == 0) {
      r.sampling.repetition_penalty = 1.1f;
      r.sampling.presence_penalty = random.below(2) == 0 ? 0.4f : 0.0f;
    }
    // Three tokens alone are likely: such an answer repeats itself, and drafts come true.
    for (int32_t t = 0; t < 3 && all.size() % 3 == 0; t++) r.sampling.logit_bias.emplace_back(random.below(300), 60.0f);
    for (uint32_t choice = 0; choice < (random.below(4) == 0 ? 3U : 1U); choice++) {
      r.sampling.choice = choice;
      all.push_back(r);
    }
  }
  return all;
}

Result alone(const TinyFile& file, const Request& r) {
  EngineOptions o;
  o.context = kContext;
  o.max_requests = 1;
  o.tokens_per_step = kContext;
  o.prefix_cache = false;
  const auto engine = file.engine(o);
  const RequestId id = engine->submit(r);
  engine->run_until_idle();
  return engine->take(id).value();
}

// All of a complete answer; of one that was cancelled what there is.
void expect_as_alone(const Result& want, const Result& got, const std::string& what) {
  SCOPED_TRACE(what);
  EXPECT_NE(got.reason, FinishReason::kError) << got.error;
  if (got.reason != FinishReason::kCancelled && got.reason != FinishReason::kDeadline) {
    EXPECT_EQ(got.reason, want.reason);
    EXPECT_EQ(got.tokens.size(), want.tokens.size());
  }
  expect_same_tokens(want, got);
}

EngineOptions random_options(Random& random, const std::shared_ptr<const Checkpoint>& same,
                             const std::shared_ptr<const Checkpoint>& other) {
  EngineOptions o;
  o.context = kContext;
  o.max_requests = 1 + random.below(8);
  o.tokens_per_step = o.max_requests + random.below(80);
  o.chunk = random.below(2) == 0 ? 0 : 1 + random.below(30);
  o.page_size = 1 + random.below(20);
  o.prefix_cache = random.below(4) != 0;
  o.priority_steps = random.below(10);
  o.draft_tokens = random.below(2) == 0 ? 0 : 1 + random.below(8);
  o.draft_branches = 1 + random.below(4);
  o.ahead = random.below(3) != 0;
  // A model that drafts: the same one, which is right, or another, which seldom is.
  if (o.draft_tokens > 0 && random.below(2) == 0) o.draft_file = random.below(2) == 0 ? same : other;
  const int32_t whole = (kContext + o.page_size - 1) / o.page_size;
  if (random.below(3) != 0) o.pages = whole + random.below(whole / 2 + 1);
  return o;
}

std::unique_ptr<Backend> backend(int threads) {
  const char* device = std::getenv("ISOBIT_TEST_DEVICE");
  return make_backend({device != nullptr ? device : "cpu", threads, ""});
}

class Traffic : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    file_ = std::make_unique<TinyFile>();
    other_ = std::make_unique<TinyFile>(TinyModel{.seed = 2, .layers = 1, .hidden = 32, .ffn = 32});
    random_ = std::make_unique<Random>();
    requests_ = users(*random_, 24);
    want_.clear();
    for (const Request& r : requests_) want_.push_back(alone(*file_, r));
  }
  static void TearDownTestSuite() {
    file_.reset();
    other_.reset();
  }

  static inline std::unique_ptr<TinyFile> file_, other_;
  static inline std::unique_ptr<Random> random_;
  static inline std::vector<Request> requests_;
  static inline std::vector<Result> want_;
};

TEST_F(Traffic, NobodyMovesAnybodysBits) {
  Random& random = *random_;
  EngineStats all;
  int cancelled = 0, overdue = 0;
  const int rounds = std::getenv("ISOBIT_TEST_DEVICE") != nullptr ? 24 : static_cast<int>(cases(120));
  for (int round = 0; round < rounds; round++) {
    const EngineOptions o = random_options(random, file_->file(), other_->file());
    SCOPED_TRACE(fmt::format(
        "{}, round {}: {} requests, {} a step, chunk {}, {} pages of {}, cache {}, {} drafts, {} branches, drafter {}, "
        "ahead {}",
        random.note(), round, o.max_requests, o.tokens_per_step, o.chunk, o.pages, o.page_size, o.prefix_cache,
        o.draft_tokens, o.draft_branches,
        o.draft_file == nullptr          ? "none"
        : o.draft_file == other_->file() ? "another"
                                         : "the same",
        *o.ahead));
    const auto engine = std::make_unique<Engine>(backend(1), file_->file(), o);
    std::vector<std::pair<size_t, RequestId>> sent;
    for (int i = 0; i < 16; i++) {
      const auto which = static_cast<size_t>(random.below(static_cast<int>(requests_.size())));
      Request r = requests_[which];
      r.priority = random.below(3) - 1;
      if (random.below(12) == 0) r.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
      sent.emplace_back(which, engine->submit(r));
      for (int s = random.below(4); s > 0; s--) engine->step();
      if (random.below(8) == 0) engine->cancel(sent[static_cast<size_t>(random.below(i + 1))].second);
      expect_pages_add_up(engine->stats());
    }
    run_checked(*engine);
    for (const auto& [which, id] : sent) {
      const Result got = engine->take(id).value();
      cancelled += got.reason == FinishReason::kCancelled ? 1 : 0;
      overdue += got.reason == FinishReason::kDeadline ? 1 : 0;
      expect_as_alone(want_[which], got, fmt::format("request {}", which));
    }
    const EngineStats s = engine->stats();
    all.preemptions += s.preemptions;
    all.cached_tokens += s.cached_tokens;
    all.accepted_tokens += s.accepted_tokens;
    all.drafted_tokens += s.drafted_tokens;
    if (HasFailure()) return;
  }
  EXPECT_GT(cancelled, rounds / 24);
  EXPECT_GT(overdue, rounds / 24);
  EXPECT_GT(all.preemptions, rounds / 3);
  EXPECT_GT(all.cached_tokens, 4 * rounds);
  EXPECT_GT(all.accepted_tokens, rounds) << "of " << all.drafted_tokens;
  EXPECT_LT(all.accepted_tokens, all.drafted_tokens) << "no draft was ever wrong";
}

TEST_F(Traffic, FromManyThreads) {
  EngineOptions o;
  o.context = kContext;
  o.max_requests = 5;
  o.pages = 12;
  o.draft_tokens = 4;
  const auto engine = std::make_unique<Engine>(backend(2), file_->file(), o);
  EngineThread thread(*engine);
  constexpr int kThreads = 8, kEach = 20;
  std::vector<std::thread> submitters;
  std::mutex mutex;
  std::vector<std::pair<size_t, std::future<Result>>> sent;
  std::atomic<int> streamed{0};
  for (int t = 0; t < kThreads; t++) {
    submitters.emplace_back([&, seed = random_->bits()] {
      std::mt19937_64 own(seed);
      for (int i = 0; i < kEach; i++) {
        const size_t which = own() % requests_.size();
        Request r = requests_[which];
        auto promise = std::make_shared<std::promise<Result>>();
        r.on_token = [&](const TokenOutput&) { streamed++; };
        r.on_finish = [promise](Result&& result) { promise->set_value(std::move(result)); };
        auto future = promise->get_future();
        const RequestId id = thread.submit(std::move(r));
        if (own() % 5 == 0) thread.cancel(id);
        const std::lock_guard lock(mutex);
        sent.emplace_back(which, std::move(future));
      }
    });
  }
  for (std::thread& t : submitters) t.join();
  size_t tokens = 0, complete = 0;
  for (auto& [which, future] : sent) {
    ASSERT_EQ(future.wait_for(std::chrono::seconds(60)), std::future_status::ready);
    const Result got = future.get();
    expect_as_alone(want_[which], got, random_->note());
    tokens += got.tokens.size();
    complete += got.reason == FinishReason::kCancelled ? 0U : 1U;
  }
  EXPECT_EQ(tokens, static_cast<size_t>(streamed.load()));
  EXPECT_GE(complete, sent.size() / 2);
  EXPECT_TRUE(thread.failure().empty());
}

TEST_F(Traffic, TheThreadEndsWhatRuns) {
  const auto engine = file_->engine();
  std::promise<Result> ended;
  {
    EngineThread thread(*engine);
    Request r = requests_[0];
    r.max_tokens = 400;
    r.on_finish = [&](Result&& result) { ended.set_value(std::move(result)); };
    thread.submit(std::move(r));
  }
  const Result result = ended.get_future().get();
  EXPECT_EQ(result.reason, FinishReason::kError);
  EXPECT_NE(result.error.find("shutting down"), std::string::npos);
}

// A backend that fails in the middle: every request hears of it, and nothing hangs.
TEST_F(Traffic, AFailingStepEndsEveryRequest) {
  const auto engine = file_->engine();
  EngineThread thread(*engine);
  std::promise<Result> first, second;
  Request r = requests_[0];
  r.on_token = [](const TokenOutput&) { throw std::runtime_error("the device is gone"); };
  r.on_finish = [&](Result&& result) { first.set_value(std::move(result)); };
  Request other = requests_[1];
  other.max_tokens = 400;
  other.on_finish = [&](Result&& result) { second.set_value(std::move(result)); };
  thread.submit(std::move(other));
  thread.submit(std::move(r));
  for (auto* p : {&first, &second}) {
    const Result result = p->get_future().get();
    EXPECT_EQ(result.reason, FinishReason::kError);
    EXPECT_NE(result.error.find("device is gone"), std::string::npos);
  }
  EXPECT_FALSE(thread.failure().empty());
  EXPECT_THROW(thread.submit(requests_[2]), Error);
}

}  // namespace
}  // namespace isobit::test
