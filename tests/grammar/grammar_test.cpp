#include "grammar/grammar.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "text/tokenizer.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

using Kind = Constraint::Kind;
constexpr int32_t kEnd = 256;

// Every byte, an end, and some words that cross what grammars tell apart.
std::unique_ptr<Tokenizer> bytes_and_words() {
  TokenizerSpec spec;
  spec.kind = TokenizerKind::kSpm;
  for (int i = 0; i < 256; i++) {
    spec.tokens.push_back(fmt::format("<0x{:02X}>", i));
    spec.types.push_back(TokenType::kByte);
  }
  spec.tokens.emplace_back("</s>");
  spec.types.push_back(TokenType::kControl);
  for (const char* word :
       {"{\"", "\":", "\", \"", "true", "fal", "se}", "]}", "12", "cat", "dog", "do", "\u00e9t\u00e9"}) {
    spec.tokens.emplace_back(word);
    spec.types.push_back(TokenType::kNormal);
  }
  spec.scores.assign(spec.tokens.size(), 0.0f);
  spec.eos_id = kEnd;
  spec.add_bos = false;
  spec.add_space_prefix = false;
  return Tokenizer::create(spec);
}

class GrammarTest : public ::testing::Test {
 protected:
  std::unique_ptr<TokenMask> start(Kind kind, const std::string& text = {}) {
    return compiler_.compile({kind, text})->start();
  }
  std::vector<int32_t> allowed(TokenMask& mask) const {
    std::vector<uint32_t> bits((static_cast<size_t>(tokenizer_->vocab_size()) + 31) / 32, ~0U);
    mask.fill(bits);
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < tokenizer_->vocab_size(); id++) {
      if ((bits[static_cast<size_t>(id) / 32] >> (id % 32)) & 1) ids.push_back(id);
    }
    return ids;
  }
  // A text made of allowed tokens at random; nothing if it does not end within `most` tokens.
  std::optional<std::string> draw(Kind kind, const std::string& text, uint64_t seed, int most = 400) {
    std::mt19937_64 random(seed);
    const auto mask = start(kind, text);
    std::vector<int32_t> out;
    for (int i = 0; i < most; i++) {
      const auto ids = allowed(*mask);
      EXPECT_FALSE(ids.empty()) << tokenizer_->decode(out);
      if (ids.empty()) return std::nullopt;
      const int32_t id = ids[random() % ids.size()];
      EXPECT_TRUE(mask->accept(id)) << "token " << id << " after " << tokenizer_->decode(out);
      if (mask->finished()) return tokenizer_->decode(out);
      out.push_back(id);
    }
    return std::nullopt;
  }
  void refuse(Kind kind, const std::string& text, std::initializer_list<std::string_view> parts) {
    expect_error(ErrorCode::kInvalidArgument, parts, [&] { compiler_.compile({kind, text}); });
  }

  std::unique_ptr<Tokenizer> tokenizer_ = bytes_and_words();
  GrammarCompiler compiler_{*tokenizer_, std::vector<int32_t>{kEnd}};
};

constexpr const char* kSchema = R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 5},
  "age": {"type": "integer", "minimum": 0, "maximum": 120}, "kind": {"enum": ["cat", "dog"]},
  "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}, "required": ["name", "age", "kind"]})";

TEST_F(GrammarTest, RandomTextsSatisfyTheSchema) {
  const uint64_t first = std::random_device{}();
  int complete = 0;
  for (uint64_t seed = first; seed < first + 60; seed++) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const auto text = draw(Kind::kJsonSchema, kSchema, seed, 2000);
    if (!text) continue;
    complete++;
    const auto j = nlohmann::json::parse(*text, nullptr, false);
    ASSERT_TRUE(j.is_object()) << *text;
    EXPECT_TRUE(j.at("name").is_string());
    EXPECT_TRUE(j.at("age").is_number_integer() && j.at("age") >= 0 && j.at("age") <= 120) << *text;
    EXPECT_TRUE(j.at("kind") == "cat" || j.at("kind") == "dog");
    for (const auto& [key, value] : j.items())
      EXPECT_TRUE(key == "name" || key == "age" || key == "kind" || key == "tags") << key;
    if (j.contains("tags")) {
      EXPECT_LE(j["tags"].size(), 3U);
      for (const auto& t : j["tags"]) EXPECT_TRUE(t.is_boolean());
    }
  }
  EXPECT_GT(complete, 20);
}

TEST_F(GrammarTest, MasksAllowWhatAcceptTakes) {
  for (const auto& [kind, text] : {std::pair{Kind::kJsonSchema, std::string(kSchema)},
                                   {Kind::kRegex, "[a-d]{2,4}[0-9]+"},
                                   {Kind::kGrammar, "root ::= \"cat\" root | \"dog\""},
                                   {Kind::kChoice, R"(["dog", "dot", "été"])"}}) {
    SCOPED_TRACE(text);
    const auto mask = start(kind, text);
    for (int step = 0; step < 12 && !mask->finished(); step++) {
      const auto ids = allowed(*mask);
      ASSERT_FALSE(ids.empty());
      for (int32_t id = 0; id < tokenizer_->vocab_size(); id++) {
        const bool may = std::ranges::find(ids, id) != ids.end();
        ASSERT_EQ(mask->accept(id), may) << "token " << id << " at step " << step;
        if (may) mask->rollback(1);
      }
      ASSERT_EQ(allowed(*mask), ids) << "after taking everything back";
      mask->accept(ids[ids.size() / 2]);
    }
  }
}

TEST_F(GrammarTest, RollbackRestoresEveryState) {
  std::mt19937_64 random(std::random_device{}());
  const auto mask = start(Kind::kJsonSchema, kSchema);
  std::vector<std::vector<int32_t>> before;
  while (before.size() < 60 && !mask->finished()) {
    before.push_back(allowed(*mask));
    mask->accept(before.back()[random() % before.back().size()]);
  }
  while (!before.empty()) {
    const size_t back = std::min<size_t>(before.size(), 1 + random() % 5);
    mask->rollback(static_cast<int32_t>(back));
    before.resize(before.size() - back + 1);
    EXPECT_EQ(allowed(*mask), before.back());
    before.pop_back();
  }
}

TEST_F(GrammarTest, ChoicesAreLiteral) {
  const std::vector<std::string> choices = {"a\"b\\c", "line\nbreak", "été", "[a-z]*"};
  std::set<std::string> met;
  for (uint64_t seed = 0; seed < 40; seed++)
    met.insert(draw(Kind::kChoice, nlohmann::json(choices).dump(), seed).value());
  EXPECT_EQ(met, std::set<std::string>(choices.begin(), choices.end()));
}

TEST_F(GrammarTest, JsonObjects) {
  int complete = 0;
  for (uint64_t seed = 0; seed < 60; seed++) {
    const auto text = draw(Kind::kJsonObject, "", seed, 300);
    if (!text || text->find_first_of("eE") != std::string::npos) continue;  // a number too large for its parser
    complete++;
    EXPECT_TRUE(nlohmann::json::parse(*text, nullptr, false).is_object()) << *text;
  }
  EXPECT_GT(complete, 0);
}

TEST_F(GrammarTest, TheEndMayComeOnlyWhereTheTextIsWhole) {
  const auto mask = start(Kind::kRegex, "(cat)+");
  EXPECT_FALSE(mask->accept(kEnd));
  for (const char c : {'c', 'a', 't'}) EXPECT_TRUE(mask->accept(static_cast<unsigned char>(c)));
  EXPECT_FALSE(mask->finished());
  EXPECT_TRUE(mask->accept(kEnd));
  EXPECT_TRUE(mask->finished());
  EXPECT_FALSE(mask->accept('c'));
  mask->rollback(2);
  EXPECT_TRUE(mask->accept('t'));
}

TEST_F(GrammarTest, WithoutAnEndTokenTheTextEndsByItself) {
  GrammarCompiler compiler(*tokenizer_, {});
  const auto mask = compiler.compile({Kind::kRegex, "ab"})->start();
  EXPECT_TRUE(mask->accept('a'));
  EXPECT_FALSE(mask->finished());
  EXPECT_TRUE(mask->accept('b'));
  EXPECT_TRUE(mask->finished());
}

TEST_F(GrammarTest, RefusesWhatItCannotUse) {
  refuse(Kind::kJsonSchema, "{\"type\": ", {"json_schema cannot be used"});
  refuse(Kind::kJsonSchema, R"({"type": "unicorn"})", {"json_schema cannot be used", "unicorn"});
  refuse(Kind::kRegex, "(a", {"regex cannot be used"});
  refuse(Kind::kGrammar, "root ::= missing", {"grammar cannot be used", "missing"});
  refuse(Kind::kGrammar, "", {"grammar cannot be used"});
  refuse(Kind::kChoice, "[]", {"choice"});
  refuse(Kind::kChoice, R"(["a", 3])", {"choice"});
  refuse(Kind::kRegex, std::string(300 << 10, 'a'), {"307200 bytes", "262144"});
}

// Short texts that would keep xgrammar busy for long.
TEST_F(GrammarTest, RefusesWhatTakesTooLong) {
  const auto nested = [](const std::string& open, const std::string& close, int depth) {
    std::string text;
    for (int i = 0; i < depth; i++) text += open;
    text += close == "}" ? "true" : "a";
    for (int i = 0; i < depth; i++) text += close;
    return text;
  };
  refuse(Kind::kRegex, nested("(", ")", 5000), {"regex has 5000 groups inside each other", "64"});
  refuse(Kind::kGrammar, "root ::= " + nested("(", ")", 65), {"65 groups", "64"});
  refuse(Kind::kRegex, "((a{1,1000}){1,1000}){1,1000}", {"1000000000 characters", "1000000"});
  refuse(Kind::kRegex, "a{99999999999999999999}", {"characters once counts are written out"});
  refuse(Kind::kJsonSchema, nested(R"({"items": )", "}", 5000), {"json_schema has 5000 brackets", "64"});
  refuse(Kind::kJsonSchema, R"({"type": "string", "pattern": "^([a-z]{1,50} ){1,500}$"})",
         {"25502 characters", "2000"});
  refuse(Kind::kJsonSchema, R"({"patternProperties": {"(ab){0,1001}": {}}})", {"2002 characters", "2000"});
  refuse(Kind::kJsonSchema, "{\"title\": \"" + std::string(70000, 'x') + "\"}", {"bytes", "65536"});
  // What only looks like it.
  start(Kind::kRegex, R"(\({3}[({]{2,5}a{1,100000})");
  start(Kind::kGrammar,
        R"(root ::= "((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((" [(]{1,3})");
  start(Kind::kJsonSchema,
        R"({"type": "string", "enum": ["{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{"]})");
}

// What takes too long is given up, goes on by itself, and holds nobody up; not many at once may.
TEST_F(GrammarTest, GivesUpAfterItsTime) {
  const auto slow = [](int i) {
    std::string properties;
    for (int p = 0; p < 200; p++)
      properties += fmt::format(R"({}"property_{}_{}": {{"type": "string", "maxLength": 9}})", p > 0 ? "," : "", i, p);
    return Constraint{Constraint::Kind::kJsonSchema, R"({"type": "object", "properties": {)" + properties + "}}"};
  };
  const Constraint known{Constraint::Kind::kRegex, "a+"}, other{Constraint::Kind::kRegex, "b+"};
  const auto remembered = compiler_.compile(known);
  for (int i = 0; i < kMostLateGrammars; i++) {
    expect_error(ErrorCode::kInvalidArgument, {"json_schema", "not ready after 0.001 s"},
                 [&] { compiler_.compile(slow(i), std::chrono::milliseconds(1)); });
  }
  EXPECT_THROW(compiler_.compile(other), GrammarBusy);
  EXPECT_EQ(compiler_.compile(known), remembered) << "what is ready is at hand meanwhile";
  for (int tries = 0; tries < 3000; tries++) {
    try {
      EXPECT_NE(compiler_.compile(other), nullptr);
      return;
    } catch (const GrammarBusy&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  FAIL() << "those that were given up never end";
}

// The compiler may go before what it has given up.
TEST_F(GrammarTest, OutlivesItsCompiler) {
  for (int i = 0; i < 3; i++) {
    GrammarCompiler compiler(*tokenizer_, {});
    const std::string text = R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 50}}})";
    EXPECT_THROW(compiler.compile({Constraint::Kind::kJsonSchema, text}, std::chrono::milliseconds(0)), Error);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
}

TEST_F(GrammarTest, RemembersTheLatest) {
  const auto first = compiler_.compile({Kind::kRegex, "a+"});
  EXPECT_EQ(compiler_.compile({Kind::kRegex, "a+"}), first);
  EXPECT_NE(compiler_.compile({Kind::kChoice, R"(["a+"])"}), first);
  for (int i = 0; i < 40; i++) compiler_.compile({Kind::kRegex, fmt::format("b{{{}}}", i + 1)});
  EXPECT_NE(compiler_.compile({Kind::kRegex, "a+"}), first);
}

TEST(Constraint, Names) {
  for (const Kind k : {Kind::kJsonObject, Kind::kJsonSchema, Kind::kRegex, Kind::kGrammar, Kind::kChoice})
    EXPECT_EQ(parse_constraint_kind(constraint_name(k)), k);
  expect_error(ErrorCode::kInvalidArgument, {"'xml' is unknown", "json_schema"}, [] { parse_constraint_kind("xml"); });
}

}  // namespace
}  // namespace isobit::test
