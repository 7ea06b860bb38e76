#include "models/kv_cache_config.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.h"
#include "numerics/dequantize.h"

namespace isobit {
namespace {

// What quantisation tools call k's scale in a layer; v's is the same with v for k.
constexpr std::array<std::string_view, 3> kScaleNames = {"self_attn.k_scale", "self_attn.attn.k_scale",
                                                         "self_attn.k_proj.k_scale"};

// What users call the types; of several names for one, messages use the first.
struct TypeName {
  KvCacheType type;
  std::string_view name;
};
constexpr TypeName kTypeNames[] = {
    {KvCacheType::kAuto, "auto"},    {KvCacheType::kBF16, "bf16"},     {KvCacheType::kF16, "f16"},
    {KvCacheType::kFp8, "fp8"},      {KvCacheType::kBF16, "bfloat16"}, {KvCacheType::kF16, "float16"},
    {KvCacheType::kFp8, "fp8_e4m3"},
};

std::string_view name_of(KvCacheType type) { return std::ranges::find(kTypeNames, type, &TypeName::type)->name; }

std::string known_names() {
  std::string names;
  for (const TypeName& t : kTypeNames) names += (names.empty() ? "" : ", ") + std::string(t.name);
  return names;
}

std::string scale_name(std::string_view of_k, bool value) {
  std::string name(of_k);
  if (!value) return name;
  for (size_t at = name.find("k_"); at != std::string::npos; at = name.find("k_", at)) name[at] = 'v';
  return name;
}

const Tensor* find_scale(const Checkpoint& file, const ModelConfig& c, int64_t layer, bool value) {
  for (const std::string_view name : kScaleNames) {
    if (const Tensor* t = file.find(c.names.of_layer(layer, scale_name(name, value)))) return t;
  }
  return nullptr;
}

std::vector<float> read_scales(const Checkpoint& file, const Tensor* t, int32_t kv_heads) {
  std::vector<float> scales(static_cast<size_t>(kv_heads), 1.0f);
  if (t == nullptr) return scales;
  if (t->elements() != 1 && t->elements() != kv_heads) {
    throw fail(ErrorCode::kBadFile, "{}: tensor {} has {} scales; a cache of {} KV heads takes 1 or {}", file.path(),
               t->name, t->elements(), kv_heads, kv_heads);
  }
  numerics::dequantize_row_f32(t->dtype, t->data, t->elements(), scales.data());
  if (t->elements() == 1) std::fill(scales.begin(), scales.end(), scales[0]);
  for (const float s : scales) {
    if (s >= 0x1p-64f && s <= 0x1p64f) continue;
    throw fail(ErrorCode::kBadFile, "{}: tensor {} holds {}; a scale must be in [2^-64, 2^64]", file.path(), t->name,
               s);
  }
  return scales;
}

}  // namespace

KvCacheType parse_kv_cache_type(std::string_view name) {
  const auto* known = std::ranges::find(kTypeNames, name, &TypeName::name);
  if (known != std::end(kTypeNames)) return known->type;
  throw fail(ErrorCode::kInvalidArgument, "kv-cache-dtype '{}' is not known; use one of {}", name, known_names());
}

void set_kv_cache(const Checkpoint& file, KvCacheType type, ModelConfig& c) {
  const KvCacheType computed = c.type == DType::kF16 ? KvCacheType::kF16 : KvCacheType::kBF16;
  if (type != KvCacheType::kAuto && type != KvCacheType::kFp8 && type != computed) {
    throw fail(ErrorCode::kInvalidArgument,
               "kv-cache-dtype is {}, but {} is computed in {}: use auto, or {}, or choose with --dtype", name_of(type),
               c.name, name_of(computed), name_of(KvCacheType::kFp8));
  }
  c.fp8_cache = type == KvCacheType::kFp8;
  for (size_t i = 0; c.fp8_cache && i < c.layers.size(); i++) {
    LayerConfig& l = c.layers[i];
    l.k_scale = read_scales(file, find_scale(file, c, static_cast<int64_t>(i), false), l.kv_heads);
    l.v_scale = read_scales(file, find_scale(file, c, static_cast<int64_t>(i), true), l.kv_heads);
  }
}

bool is_kv_scale(std::string_view tensor) {
  return std::ranges::any_of(
      kScaleNames, [&](std::string_view n) { return tensor.ends_with(n) || tensor.ends_with(scale_name(n, true)); });
}

}  // namespace isobit
