// What keys and values are cached in, and the scales that a file brings for an FP8 cache.
#include "models/kv_cache_config.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <string>
#include <vector>

#include "numerics/convert.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

// A Checkpoint that is nothing but scales.
class Scales {
 public:
  void add(const std::string& name, std::vector<float> values) { f32_[name] = std::move(values); }
  void add_bf16(const std::string& name, float value) { bf16_[name] = numerics::f32_to_bf16(value); }

  Checkpoint file() const {
    Checkpoint::Parts parts;
    parts.path = "folder";
    const auto add = [&](const std::string& name, DType type, const void* data, size_t elements) {
      Tensor t;
      t.name = name, t.dtype = type;
      if (elements > 1) t.shape = {static_cast<int64_t>(elements)};
      t.data = static_cast<const std::byte*>(data), t.bytes = dtype_bytes(type, elements);
      parts.tensors.push_back(t);
    };
    for (const auto& [name, v] : f32_) add(name, DType::kF32, v.data(), v.size());
    for (const auto& [name, v] : bf16_) add(name, DType::kBF16, &v, 1);
    return Checkpoint(std::move(parts));
  }

 private:
  std::map<std::string, std::vector<float>> f32_;
  std::map<std::string, uint16_t> bf16_;
};

ModelConfig two_layers() {
  ModelConfig c;
  c.name = "a model";
  c.names = TensorNames::hugging_face("model.", false);
  c.layers.resize(2);
  for (LayerConfig& l : c.layers) l.q_heads = 4, l.kv_heads = 2, l.head_dim = 16;
  return c;
}

using Floats = std::vector<float>;

TEST(KvCacheConfig, NamesAreThoseUsersKnow) {
  EXPECT_EQ(parse_kv_cache_type("auto"), KvCacheType::kAuto);
  EXPECT_EQ(parse_kv_cache_type("bf16"), KvCacheType::kBF16);
  EXPECT_EQ(parse_kv_cache_type("fp8"), KvCacheType::kFp8);
  EXPECT_EQ(parse_kv_cache_type("fp8_e4m3"), KvCacheType::kFp8);
  expect_error(ErrorCode::kInvalidArgument, {"'fp8_e5m2'", "auto, bf16, f16, fp8"},
               [] { parse_kv_cache_type("fp8_e5m2"); });
}

TEST(KvCacheConfig, HalvesTheBytesOfAToken) {
  ModelConfig c = two_layers();
  const size_t bytes = c.kv_bytes_per_token();
  set_kv_cache(Scales().file(), KvCacheType::kAuto, c);
  EXPECT_EQ(c.cache_type(), DType::kBF16);
  set_kv_cache(Scales().file(), KvCacheType::kFp8, c);
  EXPECT_EQ(c.cache_type(), DType::kF8E4M3);
  EXPECT_EQ(2 * c.kv_bytes_per_token(), bytes);
  for (const LayerConfig& l : c.layers)
    EXPECT_EQ(std::tie(l.k_scale, l.v_scale), std::tuple(Floats{1, 1}, Floats{1, 1}));
}

TEST(KvCacheConfig, ScalesAreTheFiles) {
  Scales s;
  s.add("model.layers.0.self_attn.k_scale", {0.5f});
  s.add("model.layers.0.self_attn.v_scale", {0.25f, 0.75f});
  s.add_bf16("model.layers.1.self_attn.k_proj.k_scale", 3.0f);
  const Checkpoint file = s.file();
  ModelConfig c = two_layers();
  set_kv_cache(file, KvCacheType::kFp8, c);
  EXPECT_EQ(c.layers[0].k_scale, (Floats{0.5f, 0.5f}));
  EXPECT_EQ(c.layers[0].v_scale, (Floats{0.25f, 0.75f}));
  EXPECT_EQ(c.layers[1].k_scale, (Floats{3.0f, 3.0f}));
  EXPECT_EQ(c.layers[1].v_scale, (Floats{1.0f, 1.0f}));
  for (const Tensor& t : file.tensors()) EXPECT_TRUE(is_kv_scale(t.name)) << t.name;
  EXPECT_TRUE(is_kv_scale("model.layers.1.self_attn.v_proj.v_scale"));
  EXPECT_FALSE(is_kv_scale("model.layers.1.self_attn.k_proj.weight"));
}

TEST(KvCacheConfig, ScalesThatCannotBeAreNamed) {
  const std::string name = "model.layers.1.self_attn.v_scale";
  const auto refused = [&](const Floats& values, std::initializer_list<std::string_view> parts) {
    Scales s;
    s.add(name, values);
    ModelConfig c = two_layers();
    expect_error(ErrorCode::kBadFile, parts, [&] { set_kv_cache(s.file(), KvCacheType::kFp8, c); });
    set_kv_cache(s.file(), KvCacheType::kAuto, c);  // of no use to another cache
  };
  refused({1, 1, 1}, {name, "3 scales", "1 or 2"});
  refused({0.0f}, {name, "holds 0", "2^-64"});
  refused({1.0f, -1.0f}, {name, "-1"});
  refused({std::numeric_limits<float>::infinity()}, {name, "inf"});
}

TEST(KvCacheConfig, AnotherTypeThanTheModelsIsRefused) {
  ModelConfig c = two_layers();
  expect_error(ErrorCode::kInvalidArgument, {"f16", "a model", "bf16", "--dtype"},
               [&] { set_kv_cache(Scales().file(), KvCacheType::kF16, c); });
  c.type = DType::kF16;
  set_kv_cache(Scales().file(), KvCacheType::kF16, c);
  expect_error(ErrorCode::kInvalidArgument, {"bf16"}, [&] { set_kv_cache(Scales().file(), KvCacheType::kBF16, c); });
}

}  // namespace
}  // namespace isobit::test
