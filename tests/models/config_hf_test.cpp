// config.json in its old and new spellings, and what is told to a broken one.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "models/config.h"
#include "models/rope_config.h"
#include "numerics/rope_scaling.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

using Json = nlohmann::json;

// A Checkpoint that is nothing but a config.json.
ModelConfig hf_config(const Json& json, ComputeType type = ComputeType::kAuto) {
  const std::string text = json.dump();
  Checkpoint::Parts parts;
  parts.path = "folder";
  parts.files.push_back({"config.json", std::as_bytes(std::span(text)), std::as_bytes(std::span(text)), nullptr});
  return read_config(Checkpoint(std::move(parts)), type);
}

Json llama() {
  return {{"model_type", "llama"},    {"hidden_size", 64},
          {"intermediate_size", 96},  {"num_hidden_layers", 6},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 300},        {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},   {"max_position_embeddings", 8192}};
}

Json with(Json json, std::initializer_list<std::pair<const char*, Json>> more) {
  for (const auto& [key, value] : more) json[key] = value;
  return json;
}

void refused(ErrorCode code, const Json& json, std::initializer_list<std::string_view> parts) {
  expect_error(code, parts, [&] { hf_config(json); });
}

TEST(HfConfig, ReadsALlama) {
  const ModelConfig c = hf_config(llama());
  EXPECT_EQ(c.family, "Llama");
  ASSERT_EQ(c.layer_count(), 6);
  EXPECT_EQ(c.layers[0],
            (LayerConfig{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 96, .attention_scale = 0.25f}));
  EXPECT_EQ(c.ropes, std::vector{make_rope(16, RopeLayout::kHalves, 500000.0, {})});
  EXPECT_EQ(c.names.of_layer(3, c.names.q), "model.layers.3.self_attn.q_proj");
}

TEST(HfConfig, BothSpellingsOfScalingAreOne) {
  const Json scaling = {
      {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 1024}};
  const ModelConfig by_type = hf_config(with(llama(), {{"rope_scaling", with(scaling, {{"type", "llama3"}})}})),
                    by_rope_type =
                        hf_config(with(llama(), {{"rope_scaling", with(scaling, {{"rope_type", "llama3"}})}})),
                    in_5 = hf_config(with(
                        llama(),
                        {{"rope_theta", nullptr},
                         {"rope_parameters", with(scaling, {{"rope_type", "llama3"}, {"rope_theta", 500000.0}})}}));
  EXPECT_EQ(by_type.ropes, in_5.ropes);
  EXPECT_EQ(by_rope_type.ropes, in_5.ropes);
  EXPECT_EQ(in_5.ropes[0].frequencies[7],
            numerics::rope_llama3(numerics::rope_frequency(7, 16, 500000.0), 8, 1, 4, 1024));
}

TEST(HfConfig, Gemma3InItsOldSpelling) {
  const Json gemma = with(llama(), {{"model_type", "gemma3_text"},
                                    {"rope_theta", 1e6},
                                    {"rope_local_base_freq", 10000.0},
                                    {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8.0}}},
                                    {"sliding_window", 512},
                                    {"sliding_window_pattern", 6},
                                    {"query_pre_attn_scalar", 256}});
  for (const Json& json : {gemma, Json{{"model_type", "gemma3"}, {"text_config", gemma}}}) {
    const ModelConfig c = hf_config(json);
    for (int i = 0; i < 5; i++) EXPECT_EQ(c.layers[static_cast<size_t>(i)].window, 512) << i;
    EXPECT_EQ(c.layers[5].window, 0);
    EXPECT_EQ(c.layers[0].attention_scale, 0.0625f);
    ASSERT_EQ(c.ropes.size(), 2);
    EXPECT_EQ(c.ropes[0].frequencies[1], numerics::rope_frequency(1, 16, 10000.0));  // with a window: not stretched
    EXPECT_EQ(c.ropes[1].frequencies[1], numerics::rope_linear(numerics::rope_frequency(1, 16, 1e6), 8.0));
    EXPECT_EQ(c.embedding_scale, 8.0f);
    EXPECT_TRUE(c.post_norms && c.qk_norm && c.weights_less_one && c.tied);
  }
}

TEST(HfConfig, WindowsOnlyWhereTheyAreUsed) {
  const Json qwen = with(llama(), {{"model_type", "qwen2"}, {"sliding_window", 64}, {"max_window_layers", 4}});
  EXPECT_EQ(hf_config(with(qwen, {{"use_sliding_window", false}})).layers[5].window, 0);
  const ModelConfig c = hf_config(with(qwen, {{"use_sliding_window", true}}));
  EXPECT_EQ(c.layers[3].window, 0);
  EXPECT_EQ(c.layers[4].window, 64);
  EXPECT_EQ(hf_config(with(llama(), {{"model_type", "mistral"}, {"sliding_window", nullptr}})).layers[0].window, 0);
  EXPECT_EQ(hf_config(with(llama(), {{"model_type", "mistral"}, {"sliding_window", 4096}})).layers[0].window, 4096);
}

TEST(HfConfig, TypesAreNamedOrFollowTheFile) {
  EXPECT_EQ(hf_config(llama()).type, DType::kBF16);
  EXPECT_EQ(hf_config(llama(), ComputeType::kF16).type, DType::kF16);
  expect_error(ErrorCode::kInvalidArgument, {"'f32'", "auto, bf16 or f16"}, [] { parse_compute_type("f32"); });
}

TEST(HfConfig, WhatIsNotBuiltIsRefused) {
  constexpr auto kUnsupported = ErrorCode::kUnsupported;
  refused(kUnsupported, with(llama(), {{"model_type", "mamba2"}}), {"'mamba2'", "gemma3_text", "llama", "qwen3"});
  refused(kUnsupported, with(llama(), {{"num_local_experts", 8}}), {"num_local_experts is 8"});
  refused(kUnsupported, with(llama(), {{"mlp_bias", true}}), {"mlp_bias"});
  refused(kUnsupported, with(llama(), {{"hidden_act", "gelu"}}), {"'gelu'", "silu"});
  refused(kUnsupported, with(llama(), {{"head_dim", 24}}), {"24"});
  refused(kUnsupported, with(llama(), {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}),
          {"'dynamic'", "yarn"});
}

TEST(HfConfig, WhatIsBrokenIsNamed) {
  constexpr auto kBadFile = ErrorCode::kBadFile;
  refused(kBadFile, Json::array(), {"folder/config.json"});
  for (const char* key : {"hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads",
                          "max_position_embeddings"}) {
    Json json = llama();
    json.erase(key);
    refused(kBadFile, json, {key, "missing"});
    refused(kBadFile, with(llama(), {{key, 0}}), {key, "is 0"});
    refused(kBadFile, with(llama(), {{key, -1}}), {key, "is -1"});
    refused(kBadFile, with(llama(), {{key, "many"}}), {key, "many"});
    refused(kBadFile, with(llama(), {{key, 18446744073709551615ULL}}), {key});
  }
  refused(kBadFile, with(llama(), {{"num_key_value_heads", 3}}), {"4 query heads", "3 key-value heads"});
  refused(kBadFile, with(llama(), {{"rope_theta", 0.5}}), {"rope_theta is 0.5"});
  refused(kBadFile, with(llama(), {{"rope_scaling", {{"type", "linear"}, {"factor", 0.0}}}}), {"factor is 0"});
  refused(kBadFile, with(llama(), {{"rope_scaling", {{"type", "linear"}}}}), {"factor is missing"});
  refused(kBadFile, with(llama(), {{"rope_scaling", {{"type", "longrope"}, {"short_factor", {1.0}}}}}),
          {"short_factor"});
  refused(kBadFile, with(llama(), {{"layer_types", {"full_attention"}}, {"model_type", "gemma2"}}),
          {"layer_types", "6"});
  refused(kBadFile, with(llama(), {{"partial_rotary_factor", 2.0}}), {"partial_rotary_factor"});
}

TEST(HfConfig, JsonOfNoModelIsNotRead) {
  const auto raw = [](const std::string& text) {
    Checkpoint::Parts parts;
    parts.path = "folder";
    parts.files.push_back({"config.json", std::as_bytes(std::span(text)), std::as_bytes(std::span(text)), nullptr});
    read_config(Checkpoint(std::move(parts)));
  };
  for (const size_t depth : {65, 1000, 1000000}) {
    const std::string deep =
        R"({"model_type": "llama", "x": )" + std::string(depth, '[') + std::string(depth, ']') + "}";
    expect_error(ErrorCode::kBadFile, {"folder/config.json", "64 deep"}, [&] { raw(deep); });
    expect_error(ErrorCode::kBadFile, {"64 deep"}, [&] { raw(std::string(depth + 1, '[')); });  // not even closed
  }
  EXPECT_NO_THROW(hf_config(with(llama(), {{"x", Json::parse(std::string(62, '[') + std::string(62, ']'))}})));
  for (const char* text : {"", "[]", "null", "{", "{\"model_type\": \"llama\"", "\xff\xfe"}) {
    expect_error(ErrorCode::kBadFile, {"folder/config.json"}, [&] { raw(text); });
  }
}

TEST(HfConfig, JsonHasALargestSize) {
  const std::string text = R"({"a": 1})";
  expect_error(ErrorCode::kBadFile, {"some.json", "8 bytes", "at most 7"},
               [&] { parse_json_file(text, "some.json", {.bytes = 7}); });
  EXPECT_EQ(parse_json_file(text, "some.json", {.bytes = 8})["a"], 1);
  // The files of a model all go through the same limits, and the largest tokenizer known fits.
  EXPECT_GE(JsonLimits().bytes, size_t{40} << 20);
  EXPECT_LE(JsonLimits().bytes, size_t{256} << 20);
}

}  // namespace
}  // namespace isobit::test
