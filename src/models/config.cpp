#include "models/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "models/config_reader.h"
#include "models/kv_cache_config.h"
#include "numerics/contract.h"
#include "numerics/ieee.h"

namespace isobit {
namespace {

void check_layer(const Checkpoint& file, const ModelConfig& c, size_t index) {
  const LayerConfig& l = c.layers[index];
  if (l.kv_heads <= 0 || l.q_heads <= 0 || l.q_heads % l.kv_heads != 0) {
    throw fail(ErrorCode::kBadFile, "{}: layer {}: {} query heads do not divide among {} key-value heads", file.path(),
               index, l.q_heads, l.kv_heads);
  }
  if (l.head_dim <= 0 || l.head_dim % 16 != 0 || l.head_dim > 256) {
    throw fail(ErrorCode::kUnsupported, "{}: head size {} is not supported; it must be a multiple of 16 up to 256",
               file.path(), l.head_dim);
  }
  if (l.window < 0 || !(l.attention_scale > 0.0f) || !std::isfinite(l.attention_scale)) {
    throw fail(ErrorCode::kBadFile, "{}: layer {}: window {} and attention scale {}; neither may be negative",
               file.path(), index, l.window, l.attention_scale);
  }
  if (l.rope >= 0 && c.ropes[static_cast<size_t>(l.rope)].dim > l.head_dim) {
    throw fail(ErrorCode::kBadFile, "{}: layer {}: {} elements of a head of {} are to turn", file.path(), index,
               c.ropes[static_cast<size_t>(l.rope)].dim, l.head_dim);
  }
}

void check(const Checkpoint& file, const ModelConfig& c) {
  if (!(c.norm_eps >= 0.0f && c.norm_eps < 1.0f)) {
    throw fail(ErrorCode::kBadFile, "{}: the norm's epsilon is {}; it must be in [0, 1)", file.path(), c.norm_eps);
  }
  if (c.vocab > numerics::kMaxVocabulary) {
    throw fail(ErrorCode::kUnsupported, "{}: the vocabulary has {} tokens; at most {} are supported", file.path(),
               c.vocab, numerics::kMaxVocabulary);
  }
  for (const float cap : {c.attention_soft_cap, c.logit_soft_cap}) {
    if (!(cap >= 0.0f) || !std::isfinite(cap)) {
      throw fail(ErrorCode::kBadFile, "{}: a soft cap is {}; it must be positive, or 0 for none", file.path(), cap);
    }
  }
  for (size_t i = 0; i < c.layers.size(); i++) check_layer(file, c, i);
}

// f16 where most bytes of the matrices are.
DType own_type(const Checkpoint& file) {
  size_t f16 = 0, all = 0;
  for (const Tensor& t : file.tensors()) {
    if (!t.supported() || t.shape.size() < 2) continue;
    all += t.bytes;
    f16 += t.dtype == DType::kF16 ? t.bytes : 0;
  }
  return 2 * f16 > all ? DType::kF16 : DType::kBF16;
}

}  // namespace

ComputeType parse_compute_type(std::string_view name) {
  if (name == "auto") return ComputeType::kAuto;
  if (name == "bf16") return ComputeType::kBF16;
  if (name == "f16") return ComputeType::kF16;
  throw fail(ErrorCode::kInvalidArgument, "dtype '{}' is not known; use auto, bf16 or f16", name);
}

size_t ModelConfig::kv_bytes(bool windowed_only) const {
  size_t elements = 0;
  for (const LayerConfig& l : layers) {
    if (l.window > 0 || !windowed_only) elements += static_cast<size_t>(2 * l.kv_columns());
  }
  return dtype_bytes(cache_type(), elements);
}

int32_t ModelConfig::longest_window() const {
  int32_t longest = 0;
  for (const LayerConfig& l : layers) longest = std::max(longest, l.window);
  return longest;
}

int64_t ModelConfig::least_context(int64_t engines) const {
  int64_t least = 0;
  for (const RopeConfig& r : ropes) {
    if (r.is_long(engines)) least = std::max(least, r.original_context + 1);
  }
  return least;
}

std::string supported_architectures() {
  std::set<std::string_view> all;
  for (const Family* f : families()) all.insert({f->gguf, f->model_type});
  all.erase("");
  return fmt::format("{}", fmt::join(all, ", "));
}

ModelConfig read_config(const Checkpoint& file, ComputeType type, KvCacheType cache) {
  ModelConfig c = file.document("config.json") ? read_hf_config(file) : read_gguf_config(file);
  c.type = type == ComputeType::kAuto ? own_type(file) : type == ComputeType::kF16 ? DType::kF16 : DType::kBF16;
  check(file, c);
  set_kv_cache(file, cache, c);
  return c;
}

ModelConfig start_config(const Family& family) {
  ModelConfig c;
  c.family = family.name;
  c.activation = family.activation;
  c.qkv_bias = family.qkv_bias;
  c.qk_norm = family.qk_norm;
  c.post_norms = family.post_norms;
  c.sinks = family.sinks;
  c.fused_gate_up = family.fused_gate_up;
  c.attention_soft_cap = family.attention_soft_cap;
  c.logit_soft_cap = family.logit_soft_cap;
  return c;
}

bool sees_everything(int64_t layer, int32_t full_attention_every) {
  return full_attention_every > 0 && (layer + 1) % full_attention_every == 0;
}

float default_attention_scale(const Family& family, const ModelConfig& c, const LayerConfig& layer) {
  const bool by_hidden = family.scale_by_hidden_layers == c.layer_count() && layer.q_heads > 0;
  const int64_t n = by_hidden ? c.hidden / layer.q_heads : layer.head_dim;
  return numerics::fdiv(1.0f, numerics::fsqrt(static_cast<float>(n)));
}

int32_t add_rope(ModelConfig& config, RopeConfig rope) {
  const auto found = std::ranges::find(config.ropes, rope);
  const auto index = static_cast<int32_t>(found - config.ropes.begin());
  if (found == config.ropes.end()) config.ropes.push_back(std::move(rope));
  return index;
}

}  // namespace isobit
