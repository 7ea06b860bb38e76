// What is said of models that cannot be run: GGUF files and folders of architectures that no family describes.
#include "models/outline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace isobit::test {
namespace {

using Json = nlohmann::json;

Tensor tensor(std::string name, std::vector<int64_t> shape) {
  Tensor t;
  t.name = std::move(name);
  t.shape = std::move(shape);
  t.dtype = DType::kF32;
  t.bytes = static_cast<size_t>(t.elements()) * 4;
  return t;
}

MetadataEntry u32(std::string_view key, uint64_t value) { return {key, {ValueType::kU32, value}}; }
MetadataEntry text(std::string_view key, std::string_view value) { return {key, {ValueType::kString, value}}; }

ModelOutline of_gguf(std::vector<MetadataEntry> entries, std::vector<Tensor> tensors) {
  Checkpoint::Parts parts;
  parts.path = "model.gguf";
  parts.metadata = Metadata("model.gguf", std::move(entries));
  parts.tensors = std::move(tensors);
  return read_outline(Checkpoint(std::move(parts)));
}

ModelOutline of_folder(const std::string& config, std::vector<Tensor> tensors) {
  Checkpoint::Parts parts;
  parts.path = "folder";
  parts.files.push_back({"config.json", std::as_bytes(std::span(config)), std::as_bytes(std::span(config)), nullptr});
  parts.tensors = std::move(tensors);
  return read_outline(Checkpoint(std::move(parts)));
}

bool says(const ModelOutline& o, std::string_view words) {
  return std::ranges::any_of(o.not_built, [&](const std::string& s) { return s.find(words) != std::string::npos; });
}

TEST(Outline, MambaHasStatesAndNoKeys) {
  const ModelOutline o = of_gguf(
      {text("general.architecture", "mamba"), u32("mamba.block_count", 2), u32("mamba.embedding_length", 64),
       u32("mamba.context_length", 1000), u32("mamba.attention.head_count", 0)},
      {tensor("token_embd.weight", {300, 64}), tensor("blk.0.ssm_a", {128, 16}), tensor("blk.1.ssm_a", {128, 16}),
       tensor("blk.0.attn_norm.weight", {64}), tensor("output.weight", {300, 64})});
  EXPECT_EQ(o.architecture, "mamba");
  EXPECT_EQ(o.layers, 2);
  EXPECT_EQ(o.hidden, 64);
  EXPECT_EQ(o.vocab, 300);
  EXPECT_EQ(o.context, 1000);
  EXPECT_EQ(o.kv_bytes_per_token, std::nullopt);
  const std::map<std::string, size_t> parts = {{"embedding", 300 * 64 * 4},
                                               {"head", 300 * 64 * 4},
                                               {"norms and others of the layers", 64 * 4},
                                               {"states", 2 * 128 * 16 * 4}};
  EXPECT_EQ(o.bytes_by_part, parts);
  ASSERT_EQ(o.not_built.size(), 1);
  EXPECT_TRUE(says(o, "a state in place of keys and values: blk.0.ssm_a and 1 more tensors"));
}

TEST(Outline, MixtureOfExpertsInBothFormats) {
  const ModelOutline gguf = of_gguf(
      {text("general.architecture", "qwen3moe"), u32("qwen3moe.block_count", 3), u32("qwen3moe.embedding_length", 64),
       u32("qwen3moe.attention.head_count", 8), u32("qwen3moe.attention.head_count_kv", 2),
       u32("qwen3moe.attention.key_length", 32), u32("qwen3moe.expert_count", 16), u32("qwen3moe.expert_used_count", 4),
       u32("qwen3moe.expert_feed_forward_length", 48)},
      {tensor("blk.0.attn_q.weight", {256, 64}), tensor("blk.0.ffn_gate_exps.weight", {16, 48, 64})});
  const Json config = {{"model_type", "qwen3_moe"},
                       {"num_hidden_layers", 3},
                       {"hidden_size", 64},
                       {"num_attention_heads", 8},
                       {"num_key_value_heads", 2},
                       {"head_dim", 32},
                       {"num_experts", 16},
                       {"num_experts_per_tok", 4},
                       {"moe_intermediate_size", 48},
                       {"max_position_embeddings", 7},
                       {"vocab_size", 300}};
  const ModelOutline folder =
      of_folder(config.dump(), {tensor("model.layers.0.self_attn.q_proj.weight", {256, 64}),
                                tensor("model.layers.0.mlp.experts.0.gate_proj.weight", {48, 64}),
                                tensor("model.layers.0.mlp.experts.1.gate_proj.weight", {48, 64})});
  for (const ModelOutline& o : {gguf, folder}) {
    EXPECT_EQ(o.experts, 16);
    EXPECT_EQ(o.experts_used, 4);
    EXPECT_EQ(o.ffn, std::vector<int64_t>{48});
    EXPECT_EQ(o.q_heads, std::vector<int64_t>{8});
    EXPECT_EQ(o.kv_bytes_per_token, 3 * 2 * 2 * 32 * 2);
    EXPECT_TRUE(says(o, "mixtures of experts"));
    EXPECT_EQ(o.bytes_by_part.at("attention"), 256 * 64 * 4);
  }
  EXPECT_EQ(gguf.bytes_by_part.at("experts"), 16 * 48 * 64 * 4);
  EXPECT_EQ(folder.bytes_by_part.at("experts"), 2 * 48 * 64 * 4);
  EXPECT_EQ(folder.vocab, 300);
  EXPECT_EQ(folder.context, 7);
}

TEST(Outline, EncoderKeepsNoKeys) {
  const Json config = {{"model_type", "bert"},     {"num_hidden_layers", 2},   {"hidden_size", 64},
                       {"num_attention_heads", 4}, {"intermediate_size", 128}, {"vocab_size", 300}};
  const ModelOutline o = of_folder(config.dump(), {tensor("embeddings.word_embeddings.weight", {300, 64}),
                                                   tensor("embeddings.position_embeddings.weight", {512, 64}),
                                                   tensor("embeddings.token_type_embeddings.weight", {2, 64}),
                                                   tensor("encoder.layer.0.attention.output.LayerNorm.bias", {64}),
                                                   tensor("encoder.layer.0.intermediate.dense.weight", {128, 64}),
                                                   tensor("encoder.layer.0.output.dense.weight", {64, 128})});
  EXPECT_EQ(o.kv_bytes_per_token, std::nullopt);
  EXPECT_EQ(o.head_dim, std::vector<int64_t>{16});
  EXPECT_EQ(o.bytes_by_part.at("ffn"), 2 * 128 * 64 * 4);
  for (const char* words : {"as encoders have", "positions that are learned", "norms with a bias"}) {
    EXPECT_TRUE(says(o, words)) << words;
  }
}

// Whatever the settings hold, what can be read is.
TEST(Outline, NonsenseIsLeftOut) {
  const ModelOutline none = of_gguf({}, {});
  EXPECT_EQ(none.architecture, "");
  EXPECT_EQ(none.layers, std::nullopt);
  const ModelOutline odd =
      of_gguf({text("general.architecture", "x"), text("x.block_count", "many"), u32("x.embedding_length", 64)}, {});
  EXPECT_EQ(odd.layers, std::nullopt);
  EXPECT_EQ(odd.hidden, 64);
  for (const char* config : {"", "[]", "{\"model_type\": 3}", "{\"num_hidden_layers\": 99999999999999999999}",
                             "{\"num_hidden_layers\": [1, \"a\"], \"text_config\": 3}",
                             "{\"num_hidden_layers\": 3, \"num_attention_heads\": -1, \"hidden_size\": 1}"}) {
    EXPECT_EQ(of_folder(config, {}).kv_bytes_per_token, std::nullopt) << config;
  }
  const Json huge = {{"num_hidden_layers", INT64_MAX}, {"num_attention_heads", INT64_MAX}, {"head_dim", INT64_MAX}};
  EXPECT_EQ(of_folder(huge.dump(), {}).kv_bytes_per_token, std::nullopt);
}

}  // namespace
}  // namespace isobit::test
