#include "models/sampling_defaults.h"

#include <gtest/gtest.h>

#include "engine/tiny_model.h"
#include "weights/expect_error.h"
#include "weights/gguf.h"
#include "weights/hf_folder.h"

namespace isobit::test {
namespace {

// What a folder's generation_config.json says; the folder's weights do not matter here.
SamplingDefaults of_folder(const std::string& text) {
  const TemporaryFolder folder;
  const std::string family = std::string(ISOBIT_SOURCE_DIR) + "/tests/truth/families/llama-linear/";
  for (const char* name : {"config.json", "model.safetensors"})
    std::filesystem::copy(family + name, folder.path() / name);
  if (!text.empty()) folder.write("generation_config.json", text);
  return read_sampling_defaults(load_hf_folder(folder.path().string()));
}

SamplingDefaults of_gguf(const std::function<void(GgufBuilder&)>& extra) {
  const std::vector<std::byte> bytes = build_tiny_model({.extra = extra});
  return read_sampling_defaults(parse_gguf(bytes, "tiny"));
}

TEST(SamplingDefaultsOf, AFolder) {
  const SamplingDefaults d = of_folder(
      R"({"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": null, "eos_token_id": [1, 2]})");
  EXPECT_EQ(d.temperature, 0.6f);
  EXPECT_EQ(d.top_k, 20);
  EXPECT_EQ(d.top_p, 0.95f);
  EXPECT_FALSE(d.min_p || d.repetition_penalty);
  EXPECT_EQ(d.describe(), "temperature 0.6, top-k 20, top-p 0.95");
}

TEST(SamplingDefaultsOf, AGgufFile) {
  const SamplingDefaults d = of_gguf([](GgufBuilder& f) {
    f.number("general.sampling.temp", ValueType::kF32, 0.7f).number("general.sampling.top_k", ValueType::kI32, 64);
    f.number("general.sampling.top_p", ValueType::kF32, 0.9f).number("general.sampling.min_p", ValueType::kF32, 0.1f);
    f.number("general.sampling.penalty_repeat", ValueType::kF32, 1.1f);
  });
  const SamplingParams p = d.over({});
  EXPECT_EQ(std::tie(p.temperature, p.top_p, p.min_p, p.repetition_penalty), std::make_tuple(0.7f, 0.9f, 0.1f, 1.1f));
  EXPECT_EQ(p.top_k, 64);
}

TEST(SamplingDefaultsOf, AModelThatStatesNothing) {
  EXPECT_TRUE(of_folder("").empty());
  EXPECT_TRUE(of_folder("{}").empty());
  EXPECT_TRUE(of_gguf({}).empty());
  EXPECT_EQ(SamplingDefaults{}.over({.temperature = 0.3f}).temperature, 0.3f);
}

TEST(SamplingDefaultsOf, WhatIsWrongIsNamed) {
  const auto refused = [](const char* text, std::initializer_list<std::string_view> parts) {
    expect_error(ErrorCode::kBadFile, parts, [&] { of_folder(text); });
  };
  refused(R"({"temperature": -1})", {"generation_config.json", "temperature is -1"});
  refused(R"({"temperature": "hot"})", {"temperature is \"hot\"", "a number"});
  refused(R"({"top_k": 1.5})", {"top_k is 1.5", "integer"});
  refused(R"({"top_p": 0})", {"top_p is 0"});
  refused("[]", {"no JSON object"});
  expect_error(ErrorCode::kBadFile, {"tiny", "min_p is 2"},
               [] { of_gguf([](GgufBuilder& f) { f.number("general.sampling.min_p", ValueType::kF32, 2.0f); }); });
}

}  // namespace
}  // namespace isobit::test
