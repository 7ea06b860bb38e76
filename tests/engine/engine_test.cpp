#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/receipt.h"
#include "engine/tiny_model.h"
#include "engine/trail.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

std::vector<int32_t> tokens(int count, int first = 3) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; i++) ids.push_back((first + i * 37) % 300);
  return ids;
}

Request request(int prompt, int answer, int first = 3) {
  Request r;
  r.prompt = tokens(prompt, first);
  r.max_tokens = answer;
  r.sampling.temperature = 0;
  r.sampling.top_logprobs = 0;
  return r;
}

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { file_ = std::make_unique<TinyFile>(); }
  static void TearDownTestSuite() { file_.reset(); }
  static std::unique_ptr<Engine> engine(const EngineOptions& o = {}) { return file_->engine(o); }
  static Result finish(Engine& e, const Request& r) {
    const RequestId id = e.submit(r);
    run_checked(e);
    return e.take(id).value();
  }
  static void refuse(const std::function<void(Request&)>& spoil, std::initializer_list<std::string_view> parts) {
    const auto e = engine();
    Request r = request(4, 4);
    spoil(r);
    expect_error(ErrorCode::kInvalidArgument, parts, [&] { e->submit(r); });
    EXPECT_EQ(finish(*e, request(4, 4)).tokens.size(), 4) << "the engine must go on after a refusal";
  }
  static inline std::unique_ptr<TinyFile> file_;
};

TEST_F(EngineTest, TakesAResultOnce) {
  const auto e = engine();
  const RequestId id = e->submit(request(5, 3));
  EXPECT_FALSE(e->take(id));
  run_checked(*e);
  EXPECT_FALSE(e->step());
  const Result r = e->take(id).value();
  EXPECT_EQ(r.request, id);
  EXPECT_FALSE(e->take(id));
  EXPECT_FALSE(e->take(id + 1));
}

TEST_F(EngineTest, MaxTokens) {
  const auto e = engine();
  const Result none = finish(*e, request(5, 0)), one = finish(*e, request(5, 1)), many = finish(*e, request(5, 9));
  EXPECT_EQ(none.tokens.size(), 0);
  EXPECT_EQ(none.reason, FinishReason::kLength);
  EXPECT_EQ(one.tokens.size(), 1);
  EXPECT_EQ(one.reason, FinishReason::kLength);
  ASSERT_EQ(many.tokens.size(), 9);
  for (int32_t i = 0; i < 9; i++) EXPECT_EQ(many.tokens[static_cast<size_t>(i)].position, 5 + i);
  EXPECT_EQ(many.tokens[0].token, one.tokens[0].token);
}

TEST_F(EngineTest, StopsWhenTheContextIsFull) {
  EngineOptions o;
  o.context = 40;
  const auto e = engine(o);
  const Result r = finish(*e, request(30, -1));
  EXPECT_EQ(r.reason, FinishReason::kLength);
  EXPECT_EQ(r.tokens.size(), 10);
  EXPECT_EQ(finish(*e, request(39, -1)).tokens.size(), 1);
  EXPECT_EQ(finish(*e, request(40, 0)).tokens.size(), 0);  // to be scored, a prompt may fill the context
  expect_error(ErrorCode::kInvalidArgument, {"40 tokens", "context holds 40"}, [&] { e->submit(request(40, 1)); });
  expect_error(ErrorCode::kInvalidArgument, {"41 tokens", "context holds 40"}, [&] { e->submit(request(41, 0)); });
}

TEST_F(EngineTest, StopTokens) {
  const auto e = engine();
  const Result whole = finish(*e, request(6, 12));
  Request r = request(6, 12);
  r.stop_tokens = {whole.tokens[4].token};
  size_t first = 0;
  while (whole.tokens[first].token != r.stop_tokens[0]) first++;
  const Result cut = finish(*e, r);
  EXPECT_EQ(cut.reason, FinishReason::kStop);
  ASSERT_EQ(cut.tokens.size(), first + 1) << "the stop token is reported, and it is the last";
  EXPECT_EQ(cut.tokens.back().token, r.stop_tokens[0]);
}

TEST_F(EngineTest, RefusesBadPrompts) {
  refuse([](Request& r) { r.prompt.clear(); }, {"prompt is empty"});
  refuse([](Request& r) { r.prompt = tokens(5000); }, {"5000 tokens", "512"});
  refuse([](Request& r) { r.prompt[2] = 300; }, {"token 300", "vocabulary of 300"});
  refuse([](Request& r) { r.prompt[0] = -1; }, {"token -1"});
  refuse([](Request& r) { r.max_tokens = -2; }, {"max_tokens is -2"});
}

TEST_F(EngineTest, RefusesBadSamplingNamingTheParameter) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {-0.1f, nan, infinity})
    refuse([&](Request& r) { r.sampling.temperature = bad; }, {"temperature is"});
  refuse([](Request& r) { r.sampling.top_k = -2; }, {"top_k is -2"});
  for (const float bad : {0.0f, 1.5f, nan}) refuse([&](Request& r) { r.sampling.top_p = bad; }, {"top_p is"});
  for (const float bad : {-0.5f, 1.0f, nan}) refuse([&](Request& r) { r.sampling.min_p = bad; }, {"min_p is"});
  for (const float bad : {0.0f, -1.0f, infinity})
    refuse([&](Request& r) { r.sampling.repetition_penalty = bad; }, {"repetition_penalty is"});
  refuse([](Request& r) { r.sampling.presence_penalty = 3; }, {"presence_penalty is 3"});
  refuse([&](Request& r) { r.sampling.frequency_penalty = nan; }, {"frequency_penalty is"});
  refuse([](Request& r) { r.sampling.top_logprobs = 21; }, {"top_logprobs is 21", "20"});
  refuse([](Request& r) { r.sampling.logit_bias = {{300, 1.0f}}; }, {"logit_bias", "300"});
  refuse([](Request& r) { r.sampling.logit_bias = {{3, 101.0f}}; }, {"logit_bias of token 3", "101"});
}

TEST_F(EngineTest, RefusesBadOptions) {
  const auto bad = [](const std::function<void(EngineOptions&)>& spoil, std::initializer_list<std::string_view> parts) {
    EngineOptions o;
    spoil(o);
    expect_error(ErrorCode::kInvalidArgument, parts, [&] { engine(o); });
  };
  bad([](EngineOptions& o) { o.context = 513; }, {"context is 513", "512"});
  bad([](EngineOptions& o) { o.context = -1; }, {"context is -1"});
  bad([](EngineOptions& o) { o.max_requests = 0; }, {"max_requests is 0"});
  bad([](EngineOptions& o) { o.tokens_per_step = 3; }, {"tokens_per_step is 3", "8"});
  bad([](EngineOptions& o) { o.chunk = -1; }, {"chunk is -1"});
  bad([](EngineOptions& o) { o.page_size = 0; }, {"page_size is 0"});
  bad([](EngineOptions& o) { o.pages = 31; }, {"pages is 31", "32 pages"});
}

TEST_F(EngineTest, LogprobsAndTopTokens) {
  const auto e = engine();
  Request r = request(5, 4);
  r.sampling.top_logprobs = 20;
  for (const TokenOutput& t : finish(*e, r).tokens) {
    ASSERT_EQ(t.top.size(), 20);
    EXPECT_EQ(t.top[0].first, t.token) << "greedy takes the best";
    EXPECT_EQ(t.top[0].second, t.logprob);
    EXPECT_LE(t.logprob, 0);
    for (size_t i = 1; i < t.top.size(); i++) EXPECT_LE(t.top[i].second, t.top[i - 1].second);
  }
  r.sampling.top_logprobs = -1;
  for (const TokenOutput& t : finish(*e, r).tokens) EXPECT_TRUE(std::isnan(t.logprob) && t.top.empty());
}

// -log_softmax over on_logits, in double: the reported values are right, not only reproducible.
TEST_F(EngineTest, LogprobsAreThoseOfTheLogits) {
  const auto e = engine();
  Request r = request(5, 6);
  std::map<int32_t, std::vector<float>> rows;
  r.on_logits = [&](int32_t position, std::span<const float> logits) {
    rows[position].assign(logits.begin(), logits.end());
  };
  r.prompt_logprobs = true;
  const Result result = finish(*e, r);
  const auto expect = [&](int32_t position, int32_t token, float got) {
    const std::vector<float>& row = rows.at(position - 1);
    double sum = 0;
    const double top = *std::ranges::max_element(row);
    for (const float x : row) sum += std::exp(static_cast<double>(x) - top);
    EXPECT_NEAR(got, row[static_cast<size_t>(token)] - top - std::log(sum), 2e-6) << "position " << position;
  };
  for (const TokenOutput& t : result.tokens) expect(t.position, t.token, t.logprob);
  ASSERT_EQ(result.prompt_logprobs.size(), 4);
  for (int32_t i = 1; i < 5; i++)
    expect(i, r.prompt[static_cast<size_t>(i)], result.prompt_logprobs[static_cast<size_t>(i - 1)]);
  for (int32_t i = 0; i < 4; i++) {
    const std::vector<float>& row = rows.at(i);
    EXPECT_EQ(result.prompt_best[static_cast<size_t>(i)], std::ranges::max_element(row) - row.begin());
  }
}

// At a prompt's places the likeliest tokens are those that sampling reports there.
TEST_F(EngineTest, TheLikeliestOfAPrompt) {
  EngineOptions o;
  o.tokens_per_step = 9;  // several steps a prompt
  const auto e = engine(o);
  Request r = request(20, 6);
  r.sampling.temperature = 1;
  r.sampling.top_logprobs = 4;
  const Result sampled = finish(*e, r);
  for (const TokenOutput& t : sampled.tokens) r.prompt.push_back(t.token);
  r.prompt_logprobs = true;
  for (const int32_t answer : {0, 1}) {
    r.max_tokens = answer;
    const Result scored = finish(*e, r);
    ASSERT_EQ(scored.prompt_top.size(), r.prompt.size() - 1);
    for (size_t i = 0; i < scored.prompt_top.size(); i++) {
      ASSERT_EQ(scored.prompt_top[i].size(), 4);
      EXPECT_EQ(scored.prompt_top[i][0].first, scored.prompt_best[i]);
    }
    for (size_t i = 0; i < sampled.tokens.size(); i++) EXPECT_EQ(scored.prompt_top[19 + i], sampled.tokens[i].top);
  }
}

TEST_F(EngineTest, SeedsDecide) {
  const auto e = engine();
  Request r = request(5, 20);
  r.sampling.temperature = 1;
  r.sampling.seed = 7;
  const Result a = finish(*e, r), b = finish(*e, r);
  r.sampling.seed = 8;
  const Result c = finish(*e, r);
  const auto ids = [](const Result& x) {
    std::vector<int32_t> all;
    for (const TokenOutput& t : x.tokens) all.push_back(t.token);
    return all;
  };
  EXPECT_EQ(ids(a), ids(b));
  EXPECT_NE(ids(a), ids(c));
}

TEST_F(EngineTest, CancelWaitingAndRunning) {
  EngineOptions o;
  o.max_requests = 1;
  const auto e = engine(o);
  const RequestId running = e->submit(request(5, 100)), waiting = e->submit(request(5, 100)),
                  last = e->submit(request(5, 2));
  e->step();
  e->cancel(running);
  e->cancel(waiting);
  e->cancel(12345);  // nobody's
  run_checked(*e);
  EXPECT_EQ(e->take(running).value().reason, FinishReason::kCancelled);
  EXPECT_EQ(e->take(waiting).value().reason, FinishReason::kCancelled);
  EXPECT_EQ(e->take(last).value().tokens.size(), 2);
}

TEST_F(EngineTest, CancelFromTheCallback) {
  const auto e = engine();
  Request r = request(5, 100);
  RequestId id = 0;
  r.on_token = [&](const TokenOutput& t) {
    if (t.position == 7) e->cancel(id);
  };
  id = e->submit(r);
  run_checked(*e);
  const Result result = e->take(id).value();
  EXPECT_EQ(result.reason, FinishReason::kCancelled);
  EXPECT_EQ(result.tokens.size(), 3);
}

TEST_F(EngineTest, PriorityDecidesWhoStarts) {
  EngineOptions o;
  o.max_requests = 1;
  const auto e = engine(o);
  std::vector<int> order;
  const auto add = [&](int name, int32_t priority) {
    Request r = request(4, 1, name);
    r.priority = priority;
    r.on_token = [&order, name](const TokenOutput&) { order.push_back(name); };
    e->submit(r);
  };
  add(1, 0);
  add(2, 5);
  add(3, -1);
  add(4, 5);
  run_checked(*e);
  EXPECT_EQ(order, (std::vector<int>{2, 4, 1, 3}));
}

TEST_F(EngineTest, PrefixIsFoundWholePagesOnly) {
  const auto e = engine();
  EXPECT_EQ(finish(*e, request(50, 2)).cached_tokens, 0);
  EXPECT_EQ(finish(*e, request(50, 2)).cached_tokens, 48);
  EXPECT_EQ(finish(*e, request(48, 2)).cached_tokens, 32) << "the last token is always computed";
  Request other = request(50, 2);
  other.prompt[20] ^= 1;
  EXPECT_EQ(finish(*e, other).cached_tokens, 16);
  Request scored = request(50, 0);
  scored.prompt_logprobs = true;
  const Result r = finish(*e, scored);
  EXPECT_EQ(r.cached_tokens, 0);
  EXPECT_EQ(r.prompt_logprobs.size(), 49);
}

// A model drafts for itself: with the target's noise it draws what the target draws, and nearly all is accepted, over
// prefixes found in the cache too. Penalties count the drafts on the way; the drafting model does not know of them.
TEST_F(EngineTest, ADraftModelMovesNoBits) {
  const TinyFile other({.seed = 2, .layers = 1});
  for (const bool penalties : {false, true}) {
    Request r = request(50, 80);
    r.sampling.temperature = 1;
    r.sampling.seed = 5;
    if (penalties) {
      r.sampling.repetition_penalty = 1.2f;
      r.sampling.frequency_penalty = 0.5f;
    }
    const std::vector<Trail> want = play(*engine(), {r});
    for (const bool same : {true, false}) {
      EngineOptions o;
      o.draft_tokens = 4;
      o.draft_file = same ? file_->file() : other.file();
      const auto e = engine(o);
      for (const int copies : {1, 3}) {
        const std::vector<Trail> got = play(*e, std::vector<Request>(static_cast<size_t>(copies), r));
        for (const Trail& t : got) expect_same(want[0], t, fmt::format("penalties {}, same {}", penalties, same));
      }
      const EngineStats s = e->stats();
      EXPECT_GT(s.drafted_tokens, 0);
      if (same && !penalties) {
        EXPECT_GE(s.accepted_tokens * 10, s.drafted_tokens * 8) << s.accepted_tokens << " of " << s.drafted_tokens;
        EXPECT_LT(s.steps, 130) << "two runs of 80 tokens";
      } else if (!same) {
        EXPECT_LT(s.drafted_tokens, 4 * 80) << "what is never right is tried ever more seldom";
      }
    }
  }
}

TEST_F(EngineTest, RefusesADraftModelOfAnotherVocabulary) {
  const TinyFile other({.vocab = 290});
  EngineOptions o;
  o.draft_tokens = 4;
  o.draft_file = other.file();
  expect_error(ErrorCode::kInvalidArgument, {"vocabulary of 290", "300"}, [&] { engine(o); });
  o.draft_file = file_->file();
  o.draft_tokens = 0;
  expect_error(ErrorCode::kInvalidArgument, {"draft_tokens"}, [&] { engine(o); });
}

// The youngest gives its pages up, in vain: the one that took them cannot go on either. The step that follows holds
// nobody without pages.
TEST_F(EngineTest, AnFp8CacheMovesBitsAndSaysSo) {
  EngineOptions o;
  o.pages = 40;
  const auto plain = engine(o);
  o.kv_cache = KvCacheType::kFp8;
  const auto whole = engine(o);
  o.chunk = 7;
  o.max_requests = 3;
  const auto chunked = engine(o);
  Request r = request(70, 6);
  r.digest_logits = true;
  const Receipt before = make_receipt(*plain, r, finish(*plain, r).tokens),
                receipt = make_receipt(*whole, r, finish(*whole, r).tokens);
  EXPECT_EQ(2 * whole->kv_bytes(), plain->kv_bytes());
  EXPECT_NE(receipt.logits, before.logits);
  EXPECT_EQ(fingerprint(*whole), fingerprint(*plain) + "/kv-fp8");
  const Receipt read = read_receipt(receipt_json(receipt));
  EXPECT_EQ(read.kv_cache, "fp8");
  EXPECT_FALSE(replay(*chunked, read)) << "a chunk moved a bit";
  expect_error(ErrorCode::kInvalidArgument, {"'fp8'", "--kv-cache-dtype fp8"}, [&] { replay(*plain, read); });
  expect_error(ErrorCode::kInvalidArgument, {"--kv-cache-dtype auto"}, [&] { replay(*whole, before); });
}

TEST_F(EngineTest, PreemptedInVain) {
  EngineOptions o;
  o.context = 256;
  o.pages = 16;
  o.max_requests = 3;
  o.tokens_per_step = 256;
  o.prefix_cache = false;
  const auto e = engine(o);
  const RequestId old = e->submit(request(100, 100, 1));  // 7 pages, 13 in the end
  e->step();
  Request big = request(250, 3, 2);  // 16 pages: not while the old one runs
  Request small = request(10, 60, 5);
  const RequestId young = e->submit(small);
  e->step();
  const RequestId second = e->submit(big), third = e->submit(small);
  run_checked(*e);
  EXPECT_EQ(e->take(old).value().tokens.size(), 100);
  EXPECT_EQ(e->take(young).value().tokens.size(), 60);
  EXPECT_EQ(e->take(second).value().tokens.size(), 3);
  EXPECT_EQ(e->take(third).value().tokens.size(), 60);
  EXPECT_GT(e->stats().preemptions, 0);
}

// Two sequences compute one page at the same time; the first ends. What it leaves in the tree must not lie under the
// other's pages where it can never be evicted, or the other cannot have its full context.
TEST_F(EngineTest, TwinPagesDoNotHoldUpTheirChildren) {
  EngineOptions o;
  o.context = 64;
  o.pages = 4;
  o.max_requests = 2;
  const auto e = engine(o);
  const auto sampled = [](uint64_t seed, int answer) {
    Request r = request(20, answer);
    r.sampling.temperature = 1.5f;
    r.sampling.seed = seed;
    return r;
  };
  for (uint64_t seed = 0; seed < 10; seed++) {
    e->flush_prefix_cache();
    const RequestId a = e->submit(sampled(2 * seed, 2)), b = e->submit(sampled(2 * seed + 1, -1));
    run_checked(*e);
    EXPECT_EQ(e->take(a).value().tokens.size(), 2);
    EXPECT_EQ(e->take(b).value().tokens.size(), 44);
  }
}

TEST_F(EngineTest, RandomTrafficThroughFewPages) {
  EngineOptions o;
  o.context = 96;
  o.page_size = 8;
  o.max_requests = 6;
  o.tokens_per_step = 40;
  for (const int32_t pages : {12, 14, 20}) {
    o.pages = pages;
    const auto e = engine(o);
    std::vector<RequestId> ids;
    for (int i = 0; i < 40; i++) {
      Request r = request(1 + (i * 29) % 80, (i * 13) % 30, i % 5);
      if (i % 2 == 0) {
        r.sampling.temperature = 1;
        r.sampling.seed = static_cast<uint64_t>(i);
      }
      ids.push_back(e->submit(r));
      e->step();
      expect_pages_add_up(e->stats());
      if (i % 7 == 3) e->cancel(ids[ids.size() / 2]);
    }
    run_checked(*e);
    for (const RequestId id : ids) EXPECT_NE(e->take(id).value().reason, FinishReason::kError);
    EXPECT_GT(e->stats().preemptions, 0);
    e->flush_prefix_cache();
    EXPECT_EQ(e->stats().pages_free, pages);
  }
}

// A token whose embedding is NaN: its request fails with a reason, the others do not notice.
TEST(EngineNotFinite, OneRequestFailsTheOthersGoOn) {
  constexpr size_t kPoisoned = 7;
  const TinyModel healthy{.types = {kF32}};
  TinyModel sick = healthy;
  sick.change = [](std::string_view name, std::vector<float>& values) {
    if (name == "token_embd.weight") values[kPoisoned * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  };
  const TinyFile good(healthy), bad(sick);
  const auto e = bad.engine(), reference = good.engine();
  Request poisoned = request(20, 5);
  poisoned.prompt[11] = kPoisoned;
  Request clean = request(20, 5, 1);
  for (int32_t& t : clean.prompt) t = t == kPoisoned ? 8 : t;
  const RequestId a = e->submit(clean), b = e->submit(poisoned), c = e->submit(clean);
  run_checked(*e);
  const Result failed = e->take(b).value();
  EXPECT_EQ(failed.reason, FinishReason::kError);
  EXPECT_NE(failed.error.find("token 11"), std::string::npos) << failed.error;
  EXPECT_NE(failed.error.find("not finite"), std::string::npos) << failed.error;
  EXPECT_TRUE(failed.tokens.empty());
  const std::vector<Trail> want = play(*reference, {clean});
  for (const RequestId id : {a, c}) {
    Trail got;
    settle(got, e->take(id).value());
    expect_same(want[0], got, "beside a failing request");
  }
  EXPECT_EQ(e->submit(poisoned), c + 1);  // and again: the cache holds nothing of it
  run_checked(*e);
  EXPECT_EQ(e->take(c + 1).value().reason, FinishReason::kError);
}

TEST(EngineNotFinite, LogitsThatAreNotFiniteFailTheRequest) {
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    TinyModel m{.types = {kF32}};
    m.change = [&](std::string_view name, std::vector<float>& values) {
      if (name == "output.weight") values[3 * 64] = poison;
    };
    const TinyFile file(m);
    const auto e = file.engine();
    for (const bool score : {false, true}) {
      Request r = request(6, score ? 0 : 4);
      r.prompt_logprobs = score;
      const RequestId id = e->submit(r);
      run_checked(*e);
      const Result result = e->take(id).value();
      EXPECT_EQ(result.reason, FinishReason::kError);
      EXPECT_NE(result.error.find("logits after token"), std::string::npos) << result.error;
    }
  }
}

TEST(EngineDevice, NamesWhatIsMissing) {
  expect_error(ErrorCode::kInvalidArgument, {"'tpu'", "cuda:N"}, [] { make_backend({"tpu", 1, ""}); });
  expect_error(ErrorCode::kInvalidArgument, {"'cuda:x'"}, [] { make_backend({"cuda:x", 1, ""}); });
  expect_error(ErrorCode::kInvalidArgument, {"threads is -1"}, [] { make_backend({"cpu", -1, ""}); });
  expect_error(ErrorCode::kUnsupported, {"'mmx'", "scalar"}, [] { make_backend({"cpu", 1, "mmx"}); });
}

TEST(EngineMemory, TwoEnginesInOneProcess) {
  const TinyFile one({.seed = 1}), two({.seed = 2});
  const auto a = one.engine(), b = two.engine(), again = one.engine();
  const std::vector<Trail> first = play(*a, {request(9, 9)}), other = play(*b, {request(9, 9)}),
                           second = play(*again, {request(9, 9)});
  expect_same(first[0], second[0], "the same model twice");
  EXPECT_NE(first[0].logits, other[0].logits);
}

}  // namespace
}  // namespace isobit::test
