// Structured output in the engine: masked sampling beside neighbours, with speculation, preemption and receipts.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "engine/receipt.h"
#include "engine/session.h"
#include "engine/tiny_model.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

using Kind = Constraint::Kind;
constexpr const char* kSchema = R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 4},
  "ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}}, "required": ["name", "ok", "kind"]})";

class StructuredTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { file_ = std::make_unique<TinyFile>(); }
  static void TearDownTestSuite() { file_.reset(); }
  static Session session(const EngineOptions& o = {}) { return {file_->path(), {"cpu", 1, ""}, o}; }
  static Request request(Session& s, const Constraint& c, uint64_t seed, float temperature = 1) {
    Request r;
    r.prompt = s.text_prompt("Describe the cat as JSON, {\"name\": \"Tom\", \"ok\": true}: ");
    r.sampling.seed = seed;
    r.sampling.temperature = temperature;
    r.sampling.top_logprobs = 0;
    r.max_tokens = 120;
    r.stop_tokens = s.stop_tokens();
    r.digest_logits = true;
    r.grammar = s.grammar(c);
    return r;
  }
  static Result finish(Session& s, Request r) {
    const RequestId id = s.engine().submit(std::move(r));
    s.engine().run_until_idle();
    return s.engine().take(id).value();
  }
  static std::string text(const Session& s, const Result& r) {
    std::vector<int32_t> ids;
    for (const TokenOutput& t : r.tokens) ids.push_back(t.token);
    return s.tokenizer().decode(ids);
  }
  static void expect_equal(const Result& a, const Result& b) {
    ASSERT_EQ(a.tokens.size(), b.tokens.size());
    EXPECT_EQ(a.reason, b.reason);
    for (size_t i = 0; i < a.tokens.size(); i++) {
      EXPECT_EQ(a.tokens[i].token, b.tokens[i].token) << i;
      EXPECT_EQ(std::bit_cast<uint32_t>(a.tokens[i].logprob), std::bit_cast<uint32_t>(b.tokens[i].logprob)) << i;
      EXPECT_EQ(a.tokens[i].logits_digest, b.tokens[i].logits_digest) << i;
    }
  }
  static inline std::unique_ptr<TinyFile> file_;
};

TEST_F(StructuredTest, AnswersSatisfyTheSchema) {
  Session s = session();
  const uint64_t first = std::random_device{}();
  int complete = 0;
  std::vector<RequestId> ids;
  for (uint64_t i = 0; i < 24; i++)
    ids.push_back(s.engine().submit(request(s, {Kind::kJsonSchema, kSchema}, first + i)));
  s.engine().run_until_idle();
  for (const RequestId id : ids) {
    SCOPED_TRACE(fmt::format("first seed {}", first));
    const Result r = s.engine().take(id).value();
    ASSERT_NE(r.reason, FinishReason::kError) << r.error;
    if (r.reason != FinishReason::kStop) continue;  // cut off
    complete++;
    const auto j = nlohmann::json::parse(text(s, r), nullptr, false);
    ASSERT_TRUE(j.is_object()) << text(s, r);
    EXPECT_TRUE(j.at("name").is_string() && j.at("ok").is_boolean() && j.size() == 3);
    EXPECT_TRUE(j.at("kind") == "cat" || j.at("kind") == "dog");
  }
  EXPECT_GT(complete, 0) << "first seed " << first;  // a random model ends by chance, some one time in three
}

TEST_F(StructuredTest, GreedyTakesTheLikeliestOfTheAllowed) {
  Session s = session();
  Request r = request(s, {Kind::kRegex, "[a-f]{3}-[0-9]{2,5}(cat|dog)"}, 0, 0);
  const auto prompt = static_cast<int32_t>(r.prompt.size());
  std::vector<std::vector<float>> rows;
  r.on_logits = [&](int32_t position, std::span<const float> logits) {
    if (position + 1 >= prompt) rows.emplace_back(logits.begin(), logits.end());
  };
  const auto mask = r.grammar->start();
  const Result got = finish(s, std::move(r));
  ASSERT_EQ(got.reason, FinishReason::kStop) << got.error;
  ASSERT_GE(rows.size(), got.tokens.size());
  for (size_t i = 0; i < got.tokens.size(); i++) {
    std::vector<uint32_t> bits((rows[i].size() + 31) / 32);
    mask->fill(bits);
    int32_t best = -1;
    for (int32_t id = 0; id < std::ssize(rows[i]); id++) {
      const bool may = ((bits[static_cast<size_t>(id) / 32] >> (id % 32)) & 1) != 0;
      if (may && (best < 0 || rows[i][static_cast<size_t>(id)] > rows[i][static_cast<size_t>(best)])) best = id;
    }
    EXPECT_EQ(got.tokens[i].token, best) << i;
    ASSERT_TRUE(mask->accept(got.tokens[i].token));
  }
}

// The same bits alone, among neighbours with and without masks, with drafts, in chunks, and short of pages.
TEST_F(StructuredTest, NothingAroundItMovesABit) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  const Constraint repeats{Kind::kGrammar, R"(root ::= item ("," item)* "."
item ::= "{\"name\": \"" [a-d]{1,3} "\", \"ok\": " ("true" | "false") "}")"};
  Session plain = session();
  std::vector<Result> alone;
  for (uint64_t i = 0; i < 6; i++)
    alone.push_back(finish(plain, request(plain, repeats, seed + i, i % 2 == 0 ? 0.0f : 1.0f)));
  EngineOptions drafts, tight;
  drafts.draft_tokens = 8;
  drafts.chunk = 5;
  tight.draft_tokens = 3;
  tight.max_requests = 4;
  tight.context = 256;
  tight.pages = 20;
  for (const EngineOptions& o : {EngineOptions{}, drafts, tight}) {
    Session s = session(o);
    std::vector<RequestId> ids;
    for (uint64_t i = 0; i < alone.size(); i++) {
      ids.push_back(s.engine().submit(request(s, repeats, seed + i, i % 2 == 0 ? 0.0f : 1.0f)));
      Request neighbour = request(s, repeats, seed + 100 + i);
      neighbour.grammar = nullptr;
      s.engine().submit(std::move(neighbour));
    }
    s.engine().run_until_idle();
    for (size_t i = 0; i < ids.size(); i++) {
      SCOPED_TRACE(fmt::format("request {}, drafts {}, pages {}", i, o.draft_tokens, o.pages));
      expect_equal(s.engine().take(ids[i]).value(), alone[i]);
    }
    if (o.draft_tokens > 0) {
      EXPECT_GT(s.engine().stats().accepted_tokens, 0) << "drafts were not tried";
    }
    if (o.pages == 20) {
      EXPECT_GT(s.engine().stats().preemptions, 0) << "nobody was preempted";
    }
  }
}

TEST_F(StructuredTest, ReceiptsCarryTheConstraint) {
  Session s = session();
  const Constraint c{Kind::kJsonSchema, kSchema};
  const Request r = request(s, c, 5);
  const Result got = finish(s, r);
  const Receipt receipt = read_receipt(receipt_json(make_receipt(s.engine(), r, got.tokens)));
  ASSERT_TRUE(receipt.constraint);
  EXPECT_EQ(receipt.constraint->text, kSchema);
  EXPECT_FALSE(replay(s.engine(), receipt, s.grammar(*receipt.constraint)));
  expect_error(ErrorCode::kInvalidArgument, {"json_schema"}, [&] { replay(s.engine(), receipt); });
  Receipt changed = receipt;
  changed.constraint->text = R"({"type": "integer"})";
  const auto difference = replay(s.engine(), changed, s.grammar(*changed.constraint));
  ASSERT_TRUE(difference);
  EXPECT_EQ(difference->index, 0U);
}

TEST_F(StructuredTest, AnEndByTheGrammarIsAStop) {
  Session s = session();
  Request r = request(s, {Kind::kChoice, R"(["yes", "no"])"}, 3);
  r.stop_tokens.clear();  // as with ignore_eos
  const Result got = finish(s, std::move(r));
  EXPECT_EQ(got.reason, FinishReason::kStop);
  const std::string answer = text(s, got);
  EXPECT_TRUE(answer == "yes" || answer == "no") << answer;
}

}  // namespace
}  // namespace isobit::test
