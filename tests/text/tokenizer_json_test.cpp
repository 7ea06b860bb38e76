// tokenizer.json against HF's tokenizers: files of every shape that the families publish, the corpus and texts with
// special tokens (make_hf_tokenizer_goldens.py), and what broken ones are told.
#include "text/tokenizer_json.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/tokenizer_golden.h"

namespace isobit {
namespace {

using Json = nlohmann::json;

std::unique_ptr<Tokenizer> make(const Json& description) {
  return Tokenizer::create(read_tokenizer_json(description.dump(), "tokenizer.json"));
}

class TokenizerJsonGolden : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerJsonGolden, EqualsHf) {
  const Json golden = golden::read("hf_" + GetParam() + ".json");
  const auto tokenizer = make(golden.at("tokenizer"));
  for (const Json& c : golden.at("cases")) {
    const auto text = c[0].get<std::string>();
    const auto ids = c[1].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->encode(text, {.add_special = true, .parse_special = true}), ids) << text;
    EXPECT_EQ(tokenizer->decode(ids), c.size() > 2 ? c[2].get<std::string>() : text);
  }
}

INSTANTIATE_TEST_SUITE_P(Published, TokenizerJsonGolden,
                         testing::Values("llama2", "llama3", "mistral", "gemma", "phi3", "qwen2", "smollm"),
                         [](const auto& tested) { return tested.param; });

Json small() {
  return Json::parse(R"({"added_tokens": [{"id": 4, "content": "<end>", "special": true}], "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}})");
}

void expect_refused(ErrorCode code, const std::function<void(Json&)>& change, const std::string& says) {
  Json json = small();
  change(json);
  try {
    make(json);
    ADD_FAILURE() << "accepted: " << json.dump();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
  }
}

TEST(TokenizerJson, ReadsASmallOne) {
  EXPECT_EQ(make(small())->encode("abc<end>", {.parse_special = true}), (std::vector<int32_t>{2, 3, 4}));
}

TEST(TokenizerJson, WhatIsNotBuiltIsRefusedByName) {
  constexpr auto kUnsupported = ErrorCode::kUnsupported;
  expect_refused(
      kUnsupported, [](Json& j) { j["model"]["type"] = "Unigram"; }, "'Unigram'");
  expect_refused(
      kUnsupported, [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "</w>");
  expect_refused(
      kUnsupported,
      [](Json& j) {
        j["normalizer"] = {{"type", "Lowercase"}};
      },
      "Lowercase");
  expect_refused(
      kUnsupported, [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }, "add_prefix_space");
  expect_refused(
      kUnsupported,
      [](Json& j) {
        j["pre_tokenizer"] = {{"type", "Whitespace"}};
      },
      "Whitespace");
  expect_refused(
      kUnsupported,
      [](Json& j) {
        j["post_processor"] = {{"type", "BertProcessing"}};
      },
      "BertProcessing");
  expect_refused(
      kUnsupported, [](Json& j) { j["added_tokens"][0]["single_word"] = true; }, "single_word");
  expect_refused(
      kUnsupported,
      [](Json& j) {
        j["pre_tokenizer"] = Json::parse(
            R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})");
      },
      "(a+)+b");
}

TEST(TokenizerJson, WhatIsBrokenIsNamed) {
  constexpr auto kBadFile = ErrorCode::kBadFile;
  expect_refused(
      kBadFile, [](Json& j) { j["model"].erase("vocab"); }, "vocab");
  expect_refused(
      kBadFile, [](Json& j) { j["model"]["vocab"]["a"] = "x"; }, "'a'");
  expect_refused(
      kBadFile, [](Json& j) { j["model"]["vocab"]["a"] = -1; }, "-1");
  expect_refused(
      kBadFile, [](Json& j) { j["model"]["vocab"]["a"] = 1ULL << 60; }, "'a'");
  expect_refused(
      kBadFile, [](Json& j) { j["model"]["vocab"]["d"] = 0; }, "same id 0");
  expect_refused(
      kBadFile, [](Json& j) { j["model"]["merges"] = {1}; }, "merges[0]");
  expect_refused(
      kBadFile, [](Json& j) { j["model"]["merges"] = {"a z"}; }, "'z'");
  expect_refused(
      kBadFile, [](Json& j) { j["added_tokens"][0].erase("id"); }, "added_tokens");
  for (const char* text : {"", "[]", "{", "nonsense", "{\"model\": 1}"}) {
    EXPECT_THROW(read_tokenizer_json(text, "tokenizer.json"), Error) << text;
  }
  EXPECT_THROW(read_tokenizer_json(std::string(100000, '['), "tokenizer.json"), Error);
}

}  // namespace
}  // namespace isobit
