// The families' GGUF keys: transformers' tiny models (tests/truth/families) written as llama.cpp's converter writes
// them give the same configuration, and logits as near to transformers'.
#include <gtest/gtest.h>

#include <map>

#include "engine/device.h"
#include "engine/tiny_model.h"
#include "models/family_golden.h"
#include "models/tiny_config.h"
#include "numerics/dequantize.h"
#include "numerics/ieee.h"
#include "numerics/rope_scaling.h"
#include "weights/expect_error.h"
#include "weights/gguf.h"

namespace isobit::test {
namespace {

struct Twin {
  const char* family;        // of tests/truth/families
  const char* architecture;  // general.architecture
  void (*keys)(GgufBuilder&);
  bool weights_plus_one = false;  // GGUF has Gemma's norm weights whole
  bool reorders = false;          // and Llama's q and k with their pairs side by side
};
void PrintTo(const Twin& t, std::ostream* out) { *out << t.family; }

void put_f32(GgufBuilder& f, const std::string& key, float value) { f.number(key, ValueType::kF32, value); }

void put_windows(GgufBuilder& f, const std::string& key, std::initializer_list<bool> windowed) {
  Bytes b;
  for (const bool w : windowed) b.number<uint8_t>(w ? 1 : 0);
  f.array(key, ValueType::kBool, windowed.size(), b);
}

// LongRoPE's and Llama 3's factors come as tensors.
void put_factors(GgufBuilder& f, const char* name, const std::vector<float>& factors) {
  f.f32(name, {factors.size()}, factors);
}

const Twin kTwins[] = {
    {"llama-yarn", "llama",
     [](GgufBuilder& f) {
       f.text("llama.rope.scaling.type", "yarn").u32("llama.rope.scaling.original_context_length", 24);
       put_f32(f, "llama.rope.scaling.factor", 4);
       put_f32(f, "llama.rope.scaling.yarn_beta_fast", 4);
       put_f32(f, "llama.rope.scaling.yarn_beta_slow", 0.5);
     },
     false, true},
    {"qwen2", "qwen2",
     [](GgufBuilder& f) {
       put_f32(f, "qwen2.rope.freq_base", 1e6f);
       f.u32("qwen2.attention.sliding_window", 8);
       put_windows(f, "qwen2.attention.sliding_window_pattern", {false, true});
     }},
    {"qwen3", "qwen3", [](GgufBuilder& f) { put_f32(f, "qwen3.rope.freq_base", 1e6f); }},
    {"gemma2", "gemma2",
     [](GgufBuilder& f) {
       f.u32("gemma2.attention.sliding_window", 8);
       put_f32(f, "gemma2.attn_logit_softcapping", 4);
       put_f32(f, "gemma2.final_logit_softcapping", 6);
       put_f32(f, "gemma2.attention.scale", numerics::fdiv(1, numerics::fsqrt(24)));
     },
     true},
    {"gemma3", "gemma3",
     [](GgufBuilder& f) {
       f.u32("gemma3.attention.sliding_window", 8).text("gemma3.rope.scaling.type", "linear");
       put_f32(f, "gemma3.rope.scaling.factor", 8);
       put_f32(f, "gemma3.rope.freq_base", 1e6f);
       put_f32(f, "gemma3.rope.freq_base_swa", 100);
     },
     true},
    {"phi3", "phi3",
     [](GgufBuilder& f) {
       f.u32("phi3.attention.sliding_window", 20).u32("phi3.rope.dimension_count", 12);
       f.u32("phi3.rope.scaling.original_context_length", 24);
       put_f32(f, "phi3.rope.scaling.attn_factor", static_cast<float>(numerics::long_magnitude(4.0, 24.0)));
       put_factors(f, "rope_factors_short.weight", {1.0f, 1.1f, 1.2f, 1.3f, 1.5f, 1.8f});
       put_factors(f, "rope_factors_long.weight", {1.0f, 1.4f, 2.0f, 2.8f, 3.5f, 4.0f});
     }},
    {"gpt-oss", "gpt-oss",
     [](GgufBuilder& f) {
       f.u32("gpt-oss.attention.sliding_window", 8).text("gpt-oss.rope.scaling.type", "yarn");
       f.u32("gpt-oss.rope.scaling.original_context_length", 24);
       put_f32(f, "gpt-oss.rope.freq_base", 150000);
       put_f32(f, "gpt-oss.rope.scaling.factor", 8);
       put_f32(f, "gpt-oss.rope.scaling.yarn_beta_fast", 2);
       put_f32(f, "gpt-oss.rope.scaling.yarn_beta_slow", 0.1f);
     }},
};

// transformers' name of a tensor as GGUF has it.
std::string gguf_name(const Twin& twin, const std::string& name) {
  const bool sandwiched = twin.weights_plus_one;  // Gemma: norms before and after
  const std::pair<std::string, std::string> parts[] = {
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm",
       sandwiched || twin.family == std::string("gpt-oss") ? "post_attention_norm" : "ffn_norm"},
      {"pre_feedforward_layernorm", "ffn_norm"},
      {"post_feedforward_layernorm", "post_ffw_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.qkv_proj", "attn_qkv"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"self_attn.sinks", "attn_sinks.weight"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.gate_up_proj", "ffn_up"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  };
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  const std::string layer = "model.layers.";
  const size_t dot = name.find('.', layer.size());
  const std::string inner = name.substr(dot + 1);
  for (const auto& [from, to] : parts) {
    if (inner.starts_with(from))
      return "blk." + name.substr(layer.size(), dot - layer.size()) + "." + to + inner.substr(from.size());
  }
  throw std::runtime_error("no GGUF name for " + name);
}

// Rows of each head: i and i + half become 2i and 2i + 1.
std::vector<float> reordered(const std::vector<float>& values, size_t columns, size_t head) {
  std::vector<float> out(values.size());
  for (size_t row = 0; row * columns < values.size(); row++) {
    const size_t i = row % head, to = row - i + i % (head / 2) * 2 + i / (head / 2);
    std::copy_n(values.begin() + static_cast<long>(row * columns), columns,
                out.begin() + static_cast<long>(to * columns));
  }
  return out;
}

std::vector<std::byte> twin_of(const Twin& twin, const Checkpoint& file, const ModelConfig& c) {
  GgufBuilder f;
  const std::string p = twin.architecture + std::string(".");
  const LayerConfig& l = c.layers.front();
  f.text("general.architecture", twin.architecture).u32(p + "block_count", static_cast<uint32_t>(c.layer_count()));
  f.u32(p + "embedding_length", static_cast<uint32_t>(c.hidden))
      .u32(p + "context_length", static_cast<uint32_t>(c.context));
  f.u32(p + "feed_forward_length", static_cast<uint32_t>(l.ffn))
      .u32(p + "attention.head_count", static_cast<uint32_t>(l.q_heads));
  f.u32(p + "attention.head_count_kv", static_cast<uint32_t>(l.kv_heads));
  f.u32(p + "attention.key_length", static_cast<uint32_t>(l.head_dim));
  f.u32(p + "attention.value_length", static_cast<uint32_t>(l.head_dim));
  put_f32(f, p + "attention.layer_norm_rms_epsilon", c.norm_eps);
  twin.keys(f);
  for (const Tensor& t : file.tensors()) {
    std::vector<float> values(static_cast<size_t>(t.elements()));
    numerics::dequantize_row_f32(t.dtype, t.data, t.elements(), values.data());
    const bool norm = t.name.find("norm") != std::string::npos;
    for (float& v : values) v = norm && twin.weights_plus_one ? numerics::fadd(1, v) : v;
    const bool turned = t.name.find("q_proj") != std::string::npos || t.name.find("k_proj") != std::string::npos;
    if (turned && twin.reorders)
      values = reordered(values, static_cast<size_t>(t.columns()), static_cast<size_t>(l.head_dim));
    std::vector<uint64_t> dimensions = {static_cast<uint64_t>(t.columns())};
    if (t.shape.size() > 1) dimensions.push_back(static_cast<uint64_t>(t.rows()));
    f.f32(gguf_name(twin, t.name), dimensions, values);
  }
  return f.build();
}

class GgufTwin : public ::testing::TestWithParam<Twin> {};

TEST_P(GgufTwin, SaysTheSame) {
  const Twin& twin = GetParam();
  const Checkpoint folder = load_hf_folder(family_folder(twin.family));
  const ModelConfig want = read_config(folder);
  const std::vector<std::byte> bytes = twin_of(twin, folder, want);
  const Checkpoint file = parse_gguf(bytes, "twin");
  const ModelConfig got = read_config(file);
  EXPECT_EQ(got.layers, want.layers);
  EXPECT_EQ(std::tie(got.hidden, got.vocab, got.context, got.norm_eps, got.embedding_scale, got.tied),
            std::tie(want.hidden, want.vocab, want.context, want.norm_eps, want.embedding_scale, want.tied));
  EXPECT_EQ(
      std::tie(got.attention_soft_cap, got.logit_soft_cap, got.activation, got.qk_norm, got.post_norms, got.sinks),
      std::tie(want.attention_soft_cap, want.logit_soft_cap, want.activation, want.qk_norm, want.post_norms,
               want.sinks));
  EXPECT_EQ(std::tie(got.qkv_bias, got.output_bias, got.fused_qkv, got.fused_gate_up),
            std::tie(want.qkv_bias, want.output_bias, want.fused_qkv, want.fused_gate_up));
  ASSERT_EQ(got.ropes.size(), want.ropes.size());
  for (size_t i = 0; i < got.ropes.size(); i++) {
    const RopeConfig &a = got.ropes[i], &b = want.ropes[i];
    EXPECT_EQ(std::tie(a.dim, a.long_frequencies, a.original_context),
              std::tie(b.dim, b.long_frequencies, b.original_context));
    EXPECT_EQ(a.layout, twin.reorders ? RopeLayout::kInterleaved : RopeLayout::kHalves);
    EXPECT_NEAR(a.magnitude, b.magnitude, 1e-7);  // GGUF's numbers are f32
    for (size_t k = 0; k < b.frequencies.size(); k++)
      EXPECT_NEAR(a.frequencies[k], b.frequencies[k], 1e-6 * b.frequencies[k]);
  }
  const FamilyGolden golden = read_family_golden(twin.family);
  const auto backend = make_backend({"cpu", 1, {}});
  EXPECT_LT(rms_difference(decoder_logits(*backend, file, got, golden.tokens), golden.logits) / golden.bf16_rms, 1.5);
}

INSTANTIATE_TEST_SUITE_P(Tiny, GgufTwin, ::testing::ValuesIn(kTwins), [](const auto& tested) {
  std::string name = tested.param.family;
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST(GgufConfig, HeadsMayDifferByLayer) {
  TinyModel m{.architecture = "gemma3", .layers = 6, .head_dim = 32};
  m.extra = [](GgufBuilder& f) {
    f.u32("gemma3.attention.sliding_window", 64).u32("gemma3.attention.key_length_swa", 16);
    f.u32("gemma3.attention.value_length", 32).u32("gemma3.attention.value_length_swa", 16);
    f.u32("gemma3.rope.dimension_count_swa", 8);
  };
  const ModelConfig c = config_of(m);
  for (size_t i = 0; i < 6; i++) {
    EXPECT_EQ(c.layers[i].head_dim, i == 5 ? 32 : 16) << i;
    EXPECT_EQ(c.ropes[static_cast<size_t>(c.layers[i].rope)].dim, i == 5 ? 32 : 8) << i;
    EXPECT_EQ(c.layers[i].attention_scale, numerics::fdiv(1, numerics::fsqrt(i == 5 ? 32.0f : 16.0f))) << i;
  }
}

// A head that serves four query heads is two that are alike and serve two each.
TEST(GgufConfig, KvHeadsMayDifferByLayer) {
  std::map<std::string, std::vector<float>, std::less<>> tensors;
  TinyModel even{.layers = 3, .types = {kF32}};
  even.change = [&](std::string_view name, std::vector<float>& values) {
    const auto half = static_cast<long>(values.size() / 2);
    if (name == "blk.1.attn_k.weight" || name == "blk.1.attn_v.weight")
      std::copy_n(values.begin(), half, values.begin() + half);
    tensors.emplace(name, values);
  };
  const TinyFile twice(even);
  TinyModel uneven{.layers = 3, .kv_heads_by_layer = {2, 1, 2}, .types = {kF32}};
  uneven.change = [&](std::string_view name, std::vector<float>& values) {
    std::copy_n(tensors.find(name)->second.begin(), values.size(), values.begin());
  };
  const TinyFile once(uneven);
  const ModelConfig config = read_config(*once.file());
  EXPECT_EQ(config.layers[1].kv_heads, 1);
  EXPECT_EQ(config.kv_bytes_per_token(), 2 * (2 + 1 + 2) * 16 * sizeof(uint16_t));
  std::vector<int32_t> tokens;
  for (int i = 0; i < 40; i++) tokens.push_back(i * 37 % 300);
  const auto backend = make_backend({"cpu", 1, {}});
  const auto want = decoder_logits(*backend, *twice.file(), read_config(*twice.file()), tokens);
  for (const int32_t chunk : {64, 7}) EXPECT_EQ(decoder_logits(*backend, *once.file(), config, tokens, chunk), want);
}

TEST(GgufConfig, ListsHaveOneEntryALayer) {
  const auto heads = [](std::initializer_list<uint32_t> counts) {
    TinyModel m{.architecture = "qwen3"};
    m.extra = [all = std::vector<uint32_t>(counts)](GgufBuilder& f) {
      Bytes b;
      for (const uint32_t n : all) b.number(n);
      f.array("qwen3.rope.dimension_count", ValueType::kU32, all.size(), b);
    };
    return m;
  };
  const ModelConfig c = config_of(heads({16, 8}));
  EXPECT_EQ(c.ropes[static_cast<size_t>(c.layers[1].rope)].dim, 8);
  expect_error(ErrorCode::kBadFile, {"rope.dimension_count has 3 entries for 2 layers"}, [&] {
    config_of(heads({16, 8, 8}));
  });
}

TEST(GgufConfig, EveryFourthLayerOfSmolLM3DoesNotTurn) {
  const ModelConfig c = config_of({.architecture = "smollm3", .layers = 8});
  for (size_t i = 0; i < 8; i++) EXPECT_EQ(c.layers[i].rope < 0, i % 4 == 3) << i;
  EXPECT_EQ(c.ropes.front().layout, RopeLayout::kInterleaved);
}

}  // namespace
}  // namespace isobit::test
