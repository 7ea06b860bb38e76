#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "text/tokenizer_golden.h"
#include "text/unicode.h"

namespace isobit {

namespace {

using Ids = std::vector<int32_t>;

// The corpus (and a last text of the golden's own) as HF's tokenizers encode and decode it.
void replay(const std::string& name) {
  const auto json = golden::read(name);
  const auto tokenizer = Tokenizer::create(golden::spec(json.at("spec")));
  auto corpus = golden::corpus();
  corpus.emplace_back(" unmergeable ingingquux caf\u00e9quux caf\u00e9quuxes");
  ASSERT_EQ(corpus.size(), json.at("ids").size());
  for (size_t i = 0; i < corpus.size(); i++) {
    const Ids want = json.at("ids")[i].get<Ids>();
    EXPECT_EQ(tokenizer->encode(corpus[i], {.add_special = false}), want) << corpus[i];
    const auto different = json.at("decoded").find(std::to_string(i));
    const std::string text = different == json.at("decoded").end() ? corpus[i] : different->get<std::string>();
    EXPECT_EQ(tokenizer->decode(want), text);
  }
  for (const auto& pair : json.at("parse_special")) {
    const auto text = pair[0].get<std::string>();
    EXPECT_EQ(tokenizer->encode(text, {.add_special = false, .parse_special = true}), pair[1].get<Ids>()) << text;
  }
}

// The byte alphabet of ASCII letters, a few merges, a control and a user-defined token.
TokenizerSpec small_spec() {
  TokenizerSpec spec;
  spec.pre = "gpt-2";
  for (char c = 'a'; c <= 'z'; c++) spec.tokens.emplace_back(1, c);
  for (const char* name : {"\u0120", "<", ">", "ab", "<end>", "<tag>"}) spec.tokens.emplace_back(name);
  spec.types.assign(spec.tokens.size(), TokenType::kNormal);
  spec.types[30] = TokenType::kControl;
  spec.types[31] = TokenType::kUserDefined;
  spec.merges = {"a b"};
  spec.bos_id = 30;
  spec.eos_id = 30;
  return spec;
}

std::string message_of(TokenizerSpec spec, ErrorCode code = ErrorCode::kBadFile) {
  try {
    Tokenizer::create(std::move(spec));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  return "no error";
}

testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

}  // namespace

TEST(Tokenizer, Gpt2AsHf) { replay("tokenizer_gpt2.json"); }
TEST(Tokenizer, Llama3AsHf) { replay("tokenizer_llama3.json"); }
TEST(Tokenizer, Qwen2AsHf) { replay("tokenizer_qwen2.json"); }

TEST(Tokenizer, SpecialTokensInUserTextAreTextUnlessAskedFor) {
  const auto tokenizer = Tokenizer::create(small_spec());
  EXPECT_EQ(tokenizer->encode("<end>", {.add_special = false}), (Ids{27, 4, 13, 3, 28}));
  EXPECT_EQ(tokenizer->encode("<end>", {.add_special = false, .parse_special = true}), (Ids{30}));
  EXPECT_EQ(tokenizer->encode("ab<tag>ab", {.add_special = false}), (Ids{29, 31, 29}));  // user-defined: always
  EXPECT_EQ(tokenizer->encode("ab", {}), (Ids{29}));  // the file does not ask for BOS, nor does GPT-2
  TokenizerSpec spec = small_spec();
  spec.add_bos = true;
  spec.add_eos = true;
  EXPECT_EQ(Tokenizer::create(spec)->encode("ab", {}), (Ids{30, 29, 30}));
  EXPECT_EQ(Tokenizer::create(spec)->encode("ab", {.add_special = false}), (Ids{29}));
  spec.add_bos.reset();
  spec.pre = "llama-bpe";
  EXPECT_TRUE(Tokenizer::create(spec)->add_bos());
  spec.bos_id.reset();
  EXPECT_FALSE(Tokenizer::create(spec)->add_bos());
}

TEST(Tokenizer, LeftmostThenLongestTokenMatches) {
  const TokenMatcher matcher({{"abc", 1}, {"b", 2}, {"ab", 3}, {"bcd", 4}, {"", 5}});
  const auto at = [&](std::string_view text, size_t pos) {
    const auto match = matcher.find(text, pos);
    return std::tuple(match.begin, match.end, match.id);
  };
  EXPECT_EQ(at("xabcd", 0), std::tuple(1U, 4U, 1));
  EXPECT_EQ(at("xabd", 0), std::tuple(1U, 3U, 3));
  EXPECT_EQ(at("xabcd", 2), std::tuple(2U, 5U, 4));
  EXPECT_EQ(at("xbc", 0), std::tuple(1U, 2U, 2));
  EXPECT_EQ(at("xyz", 0), std::tuple(3U, 3U, -1));
  EXPECT_EQ(TokenMatcher().find("abc", 0).begin, 3U);
}

TEST(Tokenizer, InvalidUtf8IsReplacedBeforeSplitting) {
  const auto json = golden::read("tokenizer_gpt2.json");
  const auto tokenizer = Tokenizer::create(golden::spec(json.at("spec")));
  for (const char* text : {"a\xFFz", "\xF0\x9F\x98", "x \xC0\xAF y\xE2\x82", "\x80\x80\x80"}) {
    const Ids ids = tokenizer->encode(text, {.add_special = false});
    EXPECT_EQ(ids, tokenizer->encode(sanitize_utf8(text), {.add_special = false}));
    EXPECT_EQ(tokenizer->decode(ids), sanitize_utf8(text));
  }
}

TEST(Tokenizer, TokensAreToldByIdAndName) {
  const auto tokenizer = Tokenizer::create(small_spec());
  EXPECT_EQ(tokenizer->vocab_size(), 32);
  EXPECT_EQ(tokenizer->token_name(26), "\u0120");
  EXPECT_EQ(tokenizer->token_bytes(26), " ");
  EXPECT_EQ(tokenizer->token_bytes(30), "");
  EXPECT_EQ(tokenizer->token_bytes(31), "<tag>");
  EXPECT_EQ(tokenizer->find("ab"), 29);
  EXPECT_EQ(tokenizer->find("nothing"), std::nullopt);
  EXPECT_TRUE(tokenizer->is_control(30));
  EXPECT_FALSE(tokenizer->is_control(31));
  EXPECT_TRUE(tokenizer->is_eog(30));
  EXPECT_FALSE(tokenizer->is_eog(0));
  for (const int32_t id : {-1, 32, INT32_MAX, INT32_MIN}) {
    EXPECT_THROW(tokenizer->token_bytes(id), Error);
    EXPECT_THROW(tokenizer->token_name(id), Error);
    EXPECT_THROW(tokenizer->is_control(id), Error);
    EXPECT_THROW(tokenizer->is_eog(id), Error);
    EXPECT_THROW(tokenizer->decode(Ids{id}), Error);
  }
}

TEST(Tokenizer, EndOfTurnTokensAreKnownByName) {
  TokenizerSpec spec = small_spec();
  spec.tokens.emplace_back("<|im_end|>");  // marked normal, as some files do
  spec.types.push_back(TokenType::kNormal);
  const auto tokenizer = Tokenizer::create(spec);
  EXPECT_TRUE(tokenizer->is_eog(32));
  EXPECT_TRUE(tokenizer->is_control(32));
  EXPECT_EQ(tokenizer->token_bytes(32), "");
}

TEST(Tokenizer, BadVocabulariesAreNamed) {
  TokenizerSpec spec = small_spec();
  spec.pre = "deepseek-v3";
  EXPECT_TRUE(contains(message_of(spec, ErrorCode::kUnsupported), "'deepseek-v3'; supported are gpt-2"));
  spec = small_spec();
  spec.types.pop_back();
  EXPECT_TRUE(contains(message_of(spec), "token_type has 31 entries for 32 tokens"));
  spec = small_spec();
  spec.types[3] = static_cast<TokenType>(9);
  EXPECT_TRUE(contains(message_of(spec), "token_type[3] = 9 (token 'd')"));
  spec = small_spec();
  spec.eos_id = 32;
  EXPECT_TRUE(contains(message_of(spec), "eos_token_id = 32: the vocabulary has the ids 0 to 31"));
  spec = small_spec();
  spec.bos_id = -1;
  EXPECT_TRUE(contains(message_of(spec), "bos_token_id = -1"));
  spec = small_spec();
  spec.tokens[5] = "c";
  EXPECT_TRUE(contains(message_of(spec), "'c' is token 2 and token 5"));
  spec = small_spec();
  spec.merges.emplace_back("<ta g>");
  EXPECT_TRUE(contains(message_of(spec), "merges[1] = '<ta g>'"));
  EXPECT_TRUE(contains(message_of({}), "no vocabulary"));
}

TEST(Tokenizer, SeveralThreadsShareOne) {
  const auto json = golden::read("tokenizer_qwen2.json");
  const auto tokenizer = Tokenizer::create(golden::spec(json.at("spec")));
  const auto corpus = golden::corpus();
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < corpus.size(); i++) {
        wrong[t] += tokenizer->encode(corpus[i], {.add_special = false}) != json.at("ids")[i].get<Ids>() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace isobit
