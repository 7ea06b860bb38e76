#include "models/tokenizer_spec.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "weights/gguf.h"

namespace isobit {

namespace {

using Ids = std::vector<int32_t>;

std::string model_path() {
  const auto env = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  std::string cache = env("ISOBIT_CACHE");
  if (cache.empty() && !env("XDG_CACHE_HOME").empty()) cache = env("XDG_CACHE_HOME") + "/isobit";
  if (cache.empty()) cache = env("HOME") + "/.cache/isobit";
  return cache + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

nlohmann::json golden(const std::string& name) {
  std::ifstream file(std::string(ISOBIT_SOURCE_DIR) + "/tests/text/data/" + name);
  return nlohmann::json::parse(file);
}

class SmolLM2Tokenizer : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(model_path())) GTEST_SKIP() << "no model at " << model_path() << "; run scripts/test";
    const Checkpoint file = load_gguf(model_path());
    tokenizer_ = Tokenizer::create(read_tokenizer_spec(file.metadata()));
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

MetadataEntry text_entry(std::string_view key, std::string_view value) { return {key, {ValueType::kString, value}}; }

}  // namespace

TEST_F(SmolLM2Tokenizer, CorpusAsHf) {
  const auto corpus = golden("tokenizer_corpus.json").get<std::vector<std::string>>();
  const auto json = golden("tokenizer_smollm2.json");
  ASSERT_EQ(corpus.size(), json.at("ids").size());
  for (size_t i = 0; i < corpus.size(); i++) {
    const auto want = json.at("ids")[i].get<Ids>();
    EXPECT_EQ(tokenizer_->encode(corpus[i], {}), want) << corpus[i];
    const auto different = json.at("decoded").find(std::to_string(i));
    EXPECT_EQ(tokenizer_->decode(want),
              different == json.at("decoded").end() ? corpus[i] : different->get<std::string>());
  }
  for (const auto& pair : json.at("parse_special")) {
    const auto text = pair[0].get<std::string>();
    EXPECT_EQ(tokenizer_->encode(text, {.parse_special = true}), pair[1].get<Ids>()) << text;
  }
}

TEST_F(SmolLM2Tokenizer, SpecialTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  EXPECT_FALSE(tokenizer_->add_bos());
  EXPECT_FALSE(tokenizer_->has_space_prefix());
  EXPECT_EQ(tokenizer_->find("<|im_start|>"), 1);
  Ids ends;
  for (int32_t id = 0; id < tokenizer_->vocab_size(); id++) {
    if (tokenizer_->is_eog(id)) ends.push_back(id);
  }
  EXPECT_EQ(ends, (Ids{0, 2}));  // <|endoftext|>, <|im_end|>
}

TEST_F(SmolLM2Tokenizer, InvalidUtf8BecomesReplacementCharacters) {
  EXPECT_EQ(tokenizer_->encode("a\xF0\x9F\x98 b\xFF", {}), tokenizer_->encode("a\uFFFD b\uFFFD", {}));
}

TEST(TokenizerSpec, UnknownModelAndMissingKeysAreNamed) {
  const auto message = [](std::vector<MetadataEntry> entries) -> std::string {
    try {
      read_tokenizer_spec(Metadata("test", std::move(entries)));
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(message({text_entry("tokenizer.ggml.model", "bert")}).find("'bert'"), std::string::npos);
  EXPECT_NE(message({}).find("tokenizer.ggml.model"), std::string::npos);
  EXPECT_NE(message({text_entry("tokenizer.ggml.model", "gpt2")}).find("tokenizer.ggml.tokens"), std::string::npos);
}

}  // namespace isobit
