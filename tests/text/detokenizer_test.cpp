#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "text/tokenizer.h"
#include "text/tokenizer_golden.h"

namespace isobit {

namespace {

// Random tokens, most of them of a few bytes, so that characters are begun, cut off and mended all the time.
void check_random_sequences(const std::string& golden_name) {
  const auto tokenizer = Tokenizer::create(golden::spec(golden::read(golden_name).at("spec")));
  const uint64_t seed = golden::fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::vector<int32_t> partial;  // tokens that are no whole characters
  for (int32_t id = 0; id < tokenizer->vocab_size(); id++) {
    const auto bytes = tokenizer->token_bytes(id);
    if (valid_utf8_prefix(bytes) != bytes.size()) partial.push_back(id);
  }
  ASSERT_GE(partial.size(), 100U);
  for (int round = 0; round < 3000; round++) {
    const TextPosition position = round % 2 == 0 ? TextPosition::kStart : TextPosition::kMiddle;
    Detokenizer detokenizer(*tokenizer, position);
    for (int use = 0; use < 2; use++) {  // flush() makes it ready again
      std::string bytes;
      std::string text;
      const size_t count = random() % 30;
      for (size_t i = 0; i < count; i++) {
        const int32_t id = random() % 4 != 0 ? partial[random() % partial.size()]
                                             : static_cast<int32_t>(random() % tokenizer->vocab_size());
        bytes += tokenizer->token_bytes(id);
        const std::string piece = detokenizer.push(id);
        ASSERT_EQ(valid_utf8_prefix(piece), piece.size());
        text += piece;
      }
      text += detokenizer.flush();
      const bool strip = position == TextPosition::kStart && tokenizer->has_space_prefix() && bytes.starts_with(' ');
      ASSERT_EQ(text, sanitize_utf8(std::string_view(bytes).substr(strip ? 1 : 0)));
    }
  }
}

}  // namespace

TEST(Detokenizer, RandomByteLevelTokens) { check_random_sequences("tokenizer_gpt2.json"); }
TEST(Detokenizer, RandomSentencePieceTokens) { check_random_sequences("tokenizer_spm_llama2.json"); }
TEST(Detokenizer, RandomSentencePieceTokensWithoutPrefix) { check_random_sequences("tokenizer_spm_gemma.json"); }

TEST(Detokenizer, HoldsACharacterBackUntilItIsWhole) {
  TokenizerSpec spec;
  spec.kind = TokenizerKind::kSpm;
  for (int byte = 0; byte < 256; byte++) spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
  spec.types.assign(256, TokenType::kByte);
  spec.tokens.emplace_back("<s>");
  spec.types.push_back(TokenType::kControl);
  spec.tokens.emplace_back("\u2581\u2581x");
  spec.types.push_back(TokenType::kNormal);
  spec.scores.assign(spec.tokens.size(), 0.0F);
  const auto tokenizer = Tokenizer::create(spec);
  Detokenizer detokenizer(*tokenizer);
  EXPECT_EQ(detokenizer.push(256), "");
  EXPECT_EQ(detokenizer.push(257), " x");  // of two spaces the first is the prefix, also after a control token
  EXPECT_EQ(detokenizer.push(257), "  x");
  EXPECT_EQ(detokenizer.push(0xF0), "");
  EXPECT_EQ(detokenizer.push(0x9F), "");
  EXPECT_EQ(detokenizer.push(0x98), "");
  EXPECT_EQ(detokenizer.push(0x80), "\U0001F600");
  EXPECT_EQ(detokenizer.push(0xE2), "");
  EXPECT_EQ(detokenizer.push('a'), "\uFFFDa");
  EXPECT_EQ(detokenizer.push(0xE2), "");
  EXPECT_EQ(detokenizer.flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.flush(), "");
  Detokenizer middle(*tokenizer, TextPosition::kMiddle);
  EXPECT_EQ(middle.push(257), "  x");
}

}  // namespace isobit
