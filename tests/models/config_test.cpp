// What a model file may say, and what it is told when it says something else.
#include "models/config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/tiny_model.h"
#include "models/load_check.h"
#include "models/tiny_config.h"
#include "weights/expect_error.h"
#include "weights/gguf.h"

namespace isobit::test {
namespace {

void expect_refused(ErrorCode code, const TinyModel& m, std::initializer_list<std::string_view> parts) {
  const std::vector<std::byte> bytes = build_tiny_model(m);
  const Checkpoint file = parse_gguf(bytes, "tiny");
  expect_error(code, parts, [&] { read_config(file); });
}

TEST(ModelConfig, ReadsWhatTheFileSays) {
  const ModelConfig c = config_of({});
  EXPECT_EQ(c.architecture, "llama");
  EXPECT_EQ(c.name, "tiny");
  ASSERT_EQ(c.layer_count(), 2);
  EXPECT_EQ(c.hidden, 64);
  EXPECT_EQ(c.vocab, 300);
  for (const LayerConfig& l : c.layers) {
    EXPECT_EQ(l, (LayerConfig{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 96, .attention_scale = 0.25f}));
  }
  ASSERT_EQ(c.ropes.size(), 1);
  EXPECT_EQ(c.ropes[0].layout, RopeLayout::kInterleaved);
  ASSERT_EQ(c.ropes[0].frequencies.size(), 8);
  EXPECT_EQ(c.ropes[0].frequencies[0], 1.0);
  EXPECT_NEAR(c.ropes[0].frequencies[4], 0.01, 1e-12);
  EXPECT_FALSE(c.tied);
  EXPECT_TRUE(config_of({.tied = true}).tied);
  EXPECT_EQ(c.kv_bytes_per_token(), 2 * 2 * 2 * 16 * 2);
}

TEST(ModelConfig, FamiliesDifferByData) {
  const ModelConfig qwen2 = config_of({.architecture = "qwen2"}), qwen3 = config_of({.architecture = "qwen3"});
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.qk_norm);
  EXPECT_TRUE(qwen3.qk_norm && !qwen3.qkv_bias);
  EXPECT_EQ(qwen2.ropes[0].layout, RopeLayout::kHalves);
}

TEST(ModelConfig, LinearRopeScaling) {
  TinyModel m;
  m.extra = [](GgufBuilder& f) {
    f.text("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", ValueType::kF32, 4.0f);
  };
  EXPECT_EQ(config_of(m).ropes[0].frequencies[0], 0.25);
}

TEST(ModelConfig, UnknownArchitectureIsNamedWithThoseThatRun) {
  expect_refused(ErrorCode::kUnsupported, {.architecture = "mamba2"}, {"'mamba2'", "llama", "qwen2", "qwen3"});
}

TEST(ModelConfig, ValuesOutOfRangeAreNamed) {
  expect_refused(ErrorCode::kBadFile, {.layers = 0}, {"llama.block_count is 0", "[1, 1000]"});
  expect_refused(ErrorCode::kBadFile, {.context = 0}, {"llama.context_length is 0"});
  expect_refused(ErrorCode::kBadFile, {.q_heads = 4, .kv_heads = 3}, {"4 query heads", "3 key-value heads"});
  expect_refused(ErrorCode::kUnsupported, {.head_dim = 24}, {"head size 24", "multiple of 16"});
}

TEST(ModelConfig, WhatIsNotSupportedIsRefusedNotIgnored) {
  TinyModel stretched;
  stretched.extra = [](GgufBuilder& f) { f.text("llama.rope.scaling.type", "dynamic"); };
  expect_refused(ErrorCode::kUnsupported, stretched, {"'dynamic'", "linear", "yarn"});
  TinyModel experts;
  experts.extra = [](GgufBuilder& f) { f.u32("llama.expert_count", 8); };
  expect_refused(ErrorCode::kUnsupported, experts, {"expert_count is 8"});
  TinyModel zero;
  zero.extra = [](GgufBuilder& f) {
    f.text("llama.rope.scaling.type", "linear").number("llama.rope.scaling.factor", ValueType::kF32, 0.0f);
  };
  expect_refused(ErrorCode::kBadFile, zero, {"rope.scaling.factor is 0"});
}

TEST(Decoder, MissingTensorIsNamed) {
  for (const std::string name : {"blk.1.ffn_down.weight", "output_norm.weight", "blk.0.attn_norm.weight"}) {
    TinyModel m;
    m.without = {name};
    const TinyFile file(m);
    expect_error(ErrorCode::kBadFile, {name, "is missing"}, [&] { file.engine(); });
  }
}

TEST(LoadCheck, SaysWhatLoadingWould) {
  const TinyFile good;
  check_loads(*good.file(), read_config(*good.file()));
  for (const std::string name : {"blk.1.attn_k.weight", "output_norm.weight"}) {
    const TinyFile file({.without = {name}});
    expect_error(ErrorCode::kBadFile, {name, "is missing"},
                 [&] { check_loads(*file.file(), read_config(*file.file())); });
  }
  TinyModel more;
  more.extra = [](GgufBuilder& f) { f.f32("blk.0.attn_q_norm.weight", {16}, std::vector<float>(16, 1.0f)); };
  const TinyFile file(more);
  expect_error(ErrorCode::kUnsupported, {"blk.0.attn_q_norm.weight", "not part of Llama"},
               [&] { check_loads(*file.file(), read_config(*file.file())); });
}

TEST(Decoder, WrongShapeIsNamed) {
  // Tensors of a model with fewer heads or a wider FFN than the metadata says.
  TinyModel m;
  m.without = {"blk.0.ffn_up.weight"};
  m.extra = [](GgufBuilder& f) { f.f32("blk.0.ffn_up.weight", {64, 95}, std::vector<float>(64 * 95, 0.5f)); };
  const TinyFile file(m);
  expect_error(ErrorCode::kBadFile, {"blk.0.ffn_up.weight", "95 × 64", "96 × 64"}, [&] { file.engine(); });
}

TEST(Decoder, TypeThatCannotRunIsNamedWithThoseThatCan) {
  TinyModel m;
  m.without = {"blk.1.attn_q.weight"};
  constexpr uint32_t kI32 = 26;
  m.extra = [](GgufBuilder& f) {
    f.tensor({"blk.1.attn_q.weight", kI32, {64, 64}, std::vector<std::byte>(64 * 64 * 4), {}});
  };
  const TinyFile file(m);
  expect_error(ErrorCode::kUnsupported, {"blk.1.attn_q.weight", "I32", "Q4_K"}, [&] { file.engine(); });
}

}  // namespace
}  // namespace isobit::test
