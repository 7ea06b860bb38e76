// Drafts that form trees: several ways on from one token in one step, and not a bit of the answers moves. Compared are
// tokens, log-probabilities and digests of every row of logits, which depend on all keys and values before them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "engine/tiny_model.h"
#include "engine/trail.h"
#include "numerics/testing.h"

namespace isobit::test {
namespace {

using isobit::testing::Random;

// Few tokens are likely, so that the text's endings stand in it often and go on now so, now so.
Request of_few_tokens(Random& random, int32_t answer) {
  Request r;
  const int32_t kinds = 2 + random.below(3);
  for (int32_t i = 0; i < kinds; i++) r.sampling.logit_bias.emplace_back(97 + i, 60.0f);
  for (int32_t i = 20 + random.below(30); i > 0; i--) r.prompt.push_back(97 + random.below(kinds));
  r.max_tokens = answer;
  r.digest_logits = true;
  r.sampling.temperature = random.below(4) == 0 ? 0.0f : 1.0f;
  r.sampling.top_logprobs = 2;
  r.sampling.seed = random.bits();
  if (random.below(2) == 0) {
    r.sampling.repetition_penalty = 1.2f;
    r.sampling.frequency_penalty = 0.3f;
    r.sampling.presence_penalty = -0.2f;
  }
  return r;
}

// ISOBIT_TEST_DEVICE=cuda: on a GPU, against plain decoding on the CPU.
std::unique_ptr<Engine> tree_engine(const TinyFile& file, const EngineOptions& options) {
  const char* device = std::getenv("ISOBIT_TEST_DEVICE");
  return std::make_unique<Engine>(make_backend({device != nullptr ? device : "cpu", 1, ""}), file.file(), options);
}

void expect_equal(const Result& want, const Result& got) {
  ASSERT_EQ(got.reason, want.reason) << got.error;
  ASSERT_EQ(got.tokens.size(), want.tokens.size());
  expect_same_tokens(want, got);
}

EngineOptions with_trees(int32_t branches) {
  EngineOptions o;
  o.context = 256;
  o.page_size = 4;
  o.draft_tokens = 12;
  o.draft_branches = branches;
  return o;
}

// Whatever the model: plain answers, then by trees, together and once more over what the cache has kept of them.
void expect_same_bits(Random& random, const TinyFile& file, EngineOptions trees, int32_t count = 4) {
  EngineOptions plain = trees;
  plain.draft_tokens = 0;
  plain.draft_branches = 1;
  plain.draft_file = nullptr;
  plain.prefix_cache = false;
  plain.max_requests = 1;
  const auto alone = file.engine(plain);
  std::vector<Request> requests;
  for (int32_t i = 0; i < count; i++) requests.push_back(of_few_tokens(random, 80));
  std::vector<Result> want = answers(*alone, requests);
  const auto engine = tree_engine(file, trees);
  for (const Result& got : answers(*engine, requests)) expect_equal(want[got.request - 1], got);
  const EngineStats s = engine->stats();
  EXPECT_GT(s.branched_tokens, 0) << "no other path than the first was ever right, of " << s.accepted_tokens;
  EXPECT_LT(s.accepted_tokens, s.drafted_tokens);
  EXPECT_EQ(s.pages_used, 0);
  // Go on from the answers: their keys and values, put in order, are found in the cache.
  for (size_t i = 0; i < requests.size(); i++) {
    for (const TokenOutput& t : want[i].tokens) requests[i].prompt.push_back(t.token);
    requests[i].max_tokens = 10;
  }
  want = answers(*alone, requests);
  const std::vector<Result> got = answers(*engine, requests);
  for (size_t i = 0; i < got.size(); i++) {
    EXPECT_GT(got[i].cached_tokens, 60);
    expect_equal(want[i], got[i]);
  }
}

TEST(DraftTree, MovesNoBits) {
  Random random;
  const TinyFile file;
  for (const int32_t branches : {2, 4, 8}) {
    SCOPED_TRACE(fmt::format("{}, {} branches", random.note(), branches));
    expect_same_bits(random, file, with_trees(branches));
  }
}

// Windows with pages of their own, which must keep the rows of a tree apart from those of the others too.
TEST(DraftTree, MovesNoBitsOfWindows) {
  Random random;
  SCOPED_TRACE(random.note());
  TinyModel m;
  m.architecture = "qwen2";
  m.extra = [](GgufBuilder& f) {
    Bytes windowed;
    for (const bool w : {true, false}) windowed.number<uint8_t>(w ? 1 : 0);
    f.u32("qwen2.attention.sliding_window", 24);
    f.array("qwen2.attention.sliding_window_pattern", ValueType::kBool, 2, windowed);
  };
  EngineOptions o = with_trees(3);
  o.tokens_per_step = 64;
  const TinyFile file(m);
  EXPECT_GT(file.engine(o)->stats().window_pages_total, 0);
  expect_same_bits(random, file, o);
}

TEST(DraftTree, MovesNoBitsOfAnFp8Cache) {
  Random random;
  SCOPED_TRACE(random.note());
  EngineOptions o = with_trees(3);
  o.kv_cache = KvCacheType::kFp8;
  expect_same_bits(random, TinyFile(), o);
}

// A model that drafts a path and, beside each of its tokens, the likeliest others.
TEST(DraftTree, OfADraftModelMovesNoBits) {
  Random random;
  const TinyFile file, other(TinyModel{.seed = 2, .layers = 1, .hidden = 32, .ffn = 32});
  for (const bool same : {true, false}) {
    SCOPED_TRACE(fmt::format("{}, {}", random.note(), same ? "the same model" : "another model"));
    EngineOptions o = with_trees(3);
    o.draft_file = (same ? file : other).file();
    expect_same_bits(random, file, o);
  }
}

// Where a model that is nearly the other one is wrong, its next likely tokens are often right.
TEST(DraftTree, ADraftModelsBranchesComeTrue) {
  Random random;
  SCOPED_TRACE(random.note());
  TinyModel m;
  const TinyFile file(m);
  m.change = [noise = std::mt19937_64(5)](std::string_view name, std::vector<float>& values) mutable {
    std::normal_distribution<float> normal(0, 0.1f);
    for (float& v : values) v += name == "output.weight" ? normal(noise) : 0.0f;
  };
  const TinyFile near(m);
  std::vector<Request> requests;
  for (int i = 0; i < 8; i++) {
    Request r = of_few_tokens(random, 40);
    r.prompt = {random.below(300), random.below(300)};
    r.sampling = {.temperature = 0, .top_logprobs = 2};
    requests.push_back(r);
  }
  const std::vector<Result> want = answers(*file.engine({.context = 256}), requests);
  EngineOptions o = with_trees(4);
  const auto by_text = file.engine(o);
  answers(*by_text, requests);
  o.draft_file = near.file();
  const auto by_model = tree_engine(file, o);
  for (const Result& got : answers(*by_model, requests)) expect_equal(want[got.request - 1], got);
  EXPECT_GT(by_model->stats().branched_tokens, by_text->stats().branched_tokens + 4);
}

// A grammar prunes the tree before it is computed.
TEST(DraftTree, UnderAGrammarMovesNoBits) {
  Random random;
  SCOPED_TRACE(random.note());
  const TinyFile file;
  Session plain(file.path(), {"cpu", 1, ""}, {.context = 256});
  Session trees(file.path(), {"cpu", 1, ""}, with_trees(3));
  std::vector<Request> requests;
  for (int i = 0; i < 12; i++) {
    Request r = of_few_tokens(random, 80);
    r.grammar = plain.grammar({Constraint::Kind::kRegex, "((ab|ba|aab)(a|b)c?)*!"});
    requests.push_back(r);
  }
  const std::vector<Result> want = answers(plain.engine(), requests);
  for (const Result& got : answers(trees.engine(), requests)) expect_equal(want[got.request - 1], got);
  EXPECT_GT(trees.engine().stats().branched_tokens, 0);
}

// Rows that are handed out stand one after the other: such a sequence keeps to chains.
TEST(DraftTree, NotWhereRowsAreObserved) {
  Random random;
  SCOPED_TRACE(random.note());
  const TinyFile file;
  Request r = of_few_tokens(random, 80);
  const std::vector<Result> want = answers(*file.engine(), {r});
  std::vector<int32_t> seen;
  r.on_logits = [&](int32_t position, std::span<const float>) { seen.push_back(position); };
  const auto engine = tree_engine(file, with_trees(4));
  expect_equal(want[0], answers(*engine, {r})[0]);
  EXPECT_EQ(engine->stats().branched_tokens, 0);
  for (size_t i = 0; i < seen.size(); i++) EXPECT_EQ(seen[i], static_cast<int32_t>(i));
}

// A prompt under way beside it: no trees in such steps.
TEST(DraftTree, BesidePromptsUnderWay) {
  Random random;
  SCOPED_TRACE(random.note());
  const TinyFile file;
  std::vector<Request> requests;
  for (int i = 0; i < 10; i++) requests.push_back(of_few_tokens(random, 20 + random.below(60)));
  EngineOptions plain;
  plain.context = 256;
  const std::vector<Result> want = answers(*file.engine(plain), requests);
  EngineOptions o = with_trees(4);
  o.max_requests = 3;
  o.tokens_per_step = 20;
  o.chunk = 6;
  o.pages = 80;
  for (const bool ahead : {false, true}) {
    o.ahead = ahead;
    const auto engine = tree_engine(file, o);
    for (const Result& got : answers(*engine, requests)) expect_equal(want[got.request - 1], got);
    EXPECT_GT(engine->stats().branched_tokens, 0);
  }
}

// Rows of every head, across pages, one move after the other; and nothing else.
TEST(DraftTree, MovesRowsOfTheCache) {
  Random random;
  SCOPED_TRACE(random.note());
  constexpr int32_t kHeads = 3, kPageSize = 4, kPages = 5, kDim = 16;
  const char* device = std::getenv("ISOBIT_TEST_DEVICE");
  const auto backend = make_backend({device != nullptr ? device : "cpu", 1, ""});
  KvCacheView cache{.pages = kPages, .kv_heads = kHeads, .page_size = kPageSize, .head_dim = kDim};
  const size_t plane = static_cast<size_t>(kPages * cache.page_elements());
  std::vector<uint16_t> want(2 * plane), got(2 * plane);
  for (uint16_t& v : want) v = static_cast<uint16_t>(random.bits());
  const Buffer memory = backend->allocate(want.size() * 2, "a cache");
  cache.k = memory.data<uint16_t>();
  cache.v = memory.data<uint16_t>() + plane;
  backend->upload(memory.data(), want.data(), want.size() * 2);
  const CacheMove moves[] = {{17, 2}, {18, 17}, {7, 18}, {4, 4}};
  backend->move_cache({cache, moves});
  const auto row = [&](size_t of, int64_t place, int32_t head) {
    return want.begin() +
           static_cast<long>(
               of * plane +
               static_cast<size_t>(((place / kPageSize * kHeads + head) * kPageSize + place % kPageSize) * kDim));
  };
  for (const CacheMove& m : moves) {
    for (size_t of : {0U, 1U}) {
      for (int32_t head = 0; head < kHeads; head++) std::copy_n(row(of, m.from, head), kDim, row(of, m.to, head));
    }
  }
  backend->download(got.data(), memory.data(), got.size() * 2);
  EXPECT_EQ(got, want);
  for (const CacheMove& bad : {CacheMove{20, 0}, CacheMove{0, -1}}) {
    EXPECT_THROW(backend->move_cache({cache, std::span(&bad, 1)}), Error);
  }
}

TEST(DraftTree, RefusesTooManyBranches) {
  const TinyFile file;
  for (const int32_t branches : {0, 9, -1}) {
    EngineOptions o = with_trees(branches);
    EXPECT_THROW(file.engine(o), Error) << branches;
  }
}

}  // namespace
}  // namespace isobit::test
