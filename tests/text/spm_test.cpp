#include "text/spm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/tokenizer_golden.h"
#include "text/unicode.h"

namespace isobit {

namespace {

// Every text of the corpus that the golden has, as the sentencepiece library encodes it.
void replay_spm(const std::string& name) {
  const auto json = golden::read(name);
  const auto tokenizer = Tokenizer::create(golden::spec(json.at("spec")));
  const auto corpus = golden::corpus();
  ASSERT_GT(json.at("ids").size(), 500U);
  for (const auto& [index, ids] : json.at("ids").items()) {
    const std::string& text = corpus.at(std::stoul(index));
    EXPECT_EQ(tokenizer->encode(text, {.add_special = false}), ids.get<std::vector<int32_t>>()) << text;
  }
}

TokenizerSpec spm_spec() {
  TokenizerSpec spec;
  spec.kind = TokenizerKind::kSpm;
  spec.tokens = {"<unk>", "<s>", "</s>"};
  spec.types = {TokenType::kUnknown, TokenType::kControl, TokenType::kControl};
  for (int byte = 0; byte < 256; byte++) {
    spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    spec.types.push_back(TokenType::kByte);
  }
  for (const char* piece : {"\u2581", "a", "b", "ab", "\u2581ab"}) {
    spec.tokens.emplace_back(piece);
    spec.types.push_back(TokenType::kNormal);
  }
  spec.scores.assign(spec.tokens.size(), -1.0F);
  spec.bos_id = 1;
  spec.eos_id = 2;
  spec.unknown_id = 0;
  return spec;
}

std::string spm_error(TokenizerSpec spec) {
  try {
    Tokenizer::create(std::move(spec));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadFile);
    return error.what();
  }
  return "no error";
}

constexpr int32_t kByte = 3, kSpace = 259, kA = 260, kB = 261, kAb = 262, kSpaceAb = 263;

}  // namespace

TEST(Spm, Llama2StyleAsSentencePiece) { replay_spm("tokenizer_spm_llama2.json"); }
TEST(Spm, GemmaStyleWithUserDefinedTokensAsSentencePiece) { replay_spm("tokenizer_spm_gemma.json"); }
TEST(Spm, UnusedPiecesAsSentencePiece) { replay_spm("tokenizer_spm_unused.json"); }
TEST(Spm, UnknownWithoutByteTokensAsSentencePiece) { replay_spm("tokenizer_spm_unknown.json"); }
TEST(Spm, ExtraWhitespaceRemovedAsSentencePiece) { replay_spm("tokenizer_spm_trimmed.json"); }

TEST(Spm, SpecialTokensAndTheSpacePrefix) {
  const auto tokenizer = Tokenizer::create(spm_spec());
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(tokenizer->encode("ab", {}), (Ids{1, kSpaceAb}));
  EXPECT_EQ(tokenizer->encode("", {}), (Ids{1}));
  EXPECT_EQ(tokenizer->encode("", {.add_special = false}), (Ids{}));
  EXPECT_EQ(tokenizer->encode("<s>ab</s>ba", {.add_special = false, .parse_special = true}),
            (Ids{1, kSpaceAb, 2, kSpace, kB, kA}));
  const Ids as_text = {kSpace, kByte + '<', kByte + 's', kByte + '>', kAb};
  EXPECT_EQ(tokenizer->encode("<s>ab", {.add_special = false}), as_text);
  TokenizerSpec spec = spm_spec();
  spec.add_space_prefix = false;
  spec.add_bos = false;
  spec.add_eos = true;
  EXPECT_EQ(Tokenizer::create(spec)->encode("ab", {}), (Ids{kAb, 2}));
}

TEST(Spm, UserDefinedTokensNeverMerge) {
  TokenizerSpec spec = spm_spec();
  spec.add_space_prefix = false;
  spec.types[kA] = TokenType::kUserDefined;
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(Tokenizer::create(spec)->encode("abb ab", {.add_special = false}), (Ids{kA, kB, kB, kSpace, kA, kB}));
  spec.types[kA] = TokenType::kNormal;
  spec.types[kB] = TokenType::kUserDefined;
  EXPECT_EQ(Tokenizer::create(spec)->encode("ab", {.add_special = false}), (Ids{kA, kB}));
}

TEST(Spm, DecodesBytesAndSpaces) {
  const auto tokenizer = Tokenizer::create(spm_spec());
  for (const char* text : {"ab ab", " ab", "  a", "\n\t", "\u00e9\u5b57", "x\u00e9y"}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, {})), text);
  }
  EXPECT_EQ(tokenizer->token_bytes(1), "");
  EXPECT_EQ(tokenizer->token_bytes(0), "");
  EXPECT_EQ(tokenizer->token_bytes(kByte + 0xE9), "\xE9");
  EXPECT_EQ(tokenizer->token_bytes(kSpaceAb), " ab");
}

TEST(Spm, MillionsOfBytesWithoutASplitAreNotQuadratic) {
  const auto tokenizer = Tokenizer::create(spm_spec());
  std::string text;
  for (int i = 0; i < 500'000; i++) text += "ab";
  std::vector<int32_t> want(500'000, kAb);
  want.front() = kSpaceAb;
  EXPECT_EQ(tokenizer->encode(text, {.add_special = false}), want);
}

TEST(Spm, BadVocabulariesAreNamed) {
  TokenizerSpec spec = spm_spec();
  spec.scores[kAb] = std::nanf("");
  EXPECT_NE(spm_error(spec).find("scores[262]"), std::string::npos);
  spec = spm_spec();
  spec.scores.pop_back();
  EXPECT_NE(spm_error(spec).find("scores has 263 entries for 264 tokens"), std::string::npos);
  spec = spm_spec();
  spec.tokens[kByte + 7] = "<0xZZ>";
  EXPECT_NE(spm_error(spec).find("<0xZZ>"), std::string::npos);
  spec = spm_spec();
  spec.types[kByte + 7] = TokenType::kNormal;
  EXPECT_NE(spm_error(spec).find("255 of the 256 byte tokens, <0x07> is missing"), std::string::npos);
  spec = spm_spec();
  for (int byte = 0; byte < 256; byte++) spec.types[kByte + byte] = TokenType::kNormal;
  EXPECT_EQ(spm_error(spec), "no error");
  spec.unknown_id.reset();
  EXPECT_NE(spm_error(spec).find("neither byte tokens nor an unknown token"), std::string::npos);
}

}  // namespace isobit
