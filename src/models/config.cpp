#include "models/config.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "models/family.h"
#include "numerics/contract.h"
#include "numerics/f64.h"
#include "numerics/rope.h"

namespace isobit {
namespace {

int64_t positive(const Checkpoint& file, const std::string& key, int64_t limit) {
  const int64_t value = file.metadata().get_u32(key);
  if (value <= 0 || value > limit) {
    throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be in [1, {}]. The file is damaged or not a language model",
               file.path(), key, value, limit);
  }
  return value;
}

// Llama 3's factors come as a tensor; linear scaling as a number. Others are refused by name, not ignored.
RopeConfig read_rope(const Checkpoint& file, const std::string& prefix, int32_t head_dim, RopeLayout layout) {
  const Metadata& meta = file.metadata();
  RopeConfig rope;
  rope.layout = layout;
  const auto dim = static_cast<int64_t>(meta.find_u32(prefix + "rope.dimension_count").value_or(head_dim));
  if (dim <= 0 || dim % 2 != 0 || dim > head_dim) {
    throw fail(ErrorCode::kBadFile, "{}: {}rope.dimension_count is {}; it must be even and at most the head size {}",
               file.path(), prefix, dim, head_dim);
  }
  rope.dim = static_cast<int32_t>(dim);
  const double theta = meta.find_f32(prefix + "rope.freq_base").value_or(10000.0f);
  if (!(theta >= 1.0) || !std::isfinite(theta)) {
    throw fail(ErrorCode::kBadFile, "{}: {}rope.freq_base is {}; it must be at least 1", file.path(), prefix, theta);
  }
  double linear = 1.0;
  if (const auto type = meta.find_string(prefix + "rope.scaling.type"); type && *type != "none") {
    if (*type != "linear") {
      throw fail(ErrorCode::kUnsupported, "{}: rope scaling '{}' is not supported; isobit runs none, linear and llama3",
                 file.path(), *type);
    }
    linear = meta.get_f32(prefix + "rope.scaling.factor");
    if (!(linear > 0.0)) {
      throw fail(ErrorCode::kBadFile, "{}: {}rope.scaling.factor is {}; it must be positive", file.path(), prefix,
                 linear);
    }
  }
  const Tensor* factors = file.find("rope_freqs.weight");
  if (factors != nullptr && (factors->dtype != DType::kF32 || factors->elements() != dim / 2)) {
    throw fail(ErrorCode::kBadFile, "{}: rope_freqs.weight has {} elements of {}; {} of F32 are needed", file.path(),
               factors->elements(), factors->type_name(), dim / 2);
  }
  for (int i = 0; i < dim / 2; i++) {
    double f = numerics::rope_frequency(i, rope.dim, theta);
    if (factors != nullptr) {
      float factor = 0;
      std::memcpy(&factor, factors->data + sizeof(float) * i, sizeof(float));
      f = numerics::ddiv(f, static_cast<double>(factor));
    }
    rope.frequencies.push_back(numerics::ddiv(f, linear));
  }
  return rope;
}

}  // namespace

std::string supported_architectures() {
  std::string names;
  for (const Family& f : families()) names += (names.empty() ? "" : ", ") + std::string(f.architecture);
  return names;
}

ModelConfig read_config(const Checkpoint& file) {
  const Metadata& meta = file.metadata();
  ModelConfig c;
  c.architecture = meta.get_string("general.architecture");
  const Family* family = find_family(c.architecture);
  if (family == nullptr) {
    throw fail(ErrorCode::kUnsupported, "{}: architecture '{}' is not supported; isobit runs {}", file.path(),
               c.architecture, supported_architectures());
  }
  c.name = meta.find_string("general.name").value_or(c.architecture);
  const std::string p = c.architecture + ".";
  c.layers = positive(file, p + "block_count", 1000);
  c.hidden = positive(file, p + "embedding_length", 1 << 20);
  c.ffn = positive(file, p + "feed_forward_length", 1 << 22);
  c.context = positive(file, p + "context_length", int64_t{1} << 31);
  c.q_heads = static_cast<int32_t>(positive(file, p + "attention.head_count", 1024));
  c.kv_heads =
      static_cast<int32_t>(meta.find_u32(p + "attention.head_count_kv").value_or(static_cast<uint32_t>(c.q_heads)));
  if (c.kv_heads <= 0 || c.q_heads % c.kv_heads != 0) {
    throw fail(ErrorCode::kBadFile, "{}: {} query heads do not divide among {} key-value heads", file.path(), c.q_heads,
               c.kv_heads);
  }
  c.head_dim = static_cast<int32_t>(
      meta.find_u32(p + "attention.key_length").value_or(static_cast<uint32_t>(c.hidden / c.q_heads)));
  if (c.head_dim <= 0 || c.head_dim % 16 != 0 || c.head_dim > 256) {
    throw fail(ErrorCode::kUnsupported, "{}: head size {} is not supported; it must be a multiple of 16 up to 256",
               file.path(), c.head_dim);
  }
  c.norm_eps = meta.get_f32(p + "attention.layer_norm_rms_epsilon");
  if (!(c.norm_eps >= 0.0f && c.norm_eps < 1.0f)) {
    throw fail(ErrorCode::kBadFile, "{}: the norm's epsilon is {}; it must be in [0, 1)", file.path(), c.norm_eps);
  }
  if (meta.find_u32(p + "expert_count").value_or(0) != 0) {
    throw fail(ErrorCode::kUnsupported, "{}: mixture-of-experts models are not supported yet ({}expert_count is {})",
               file.path(), p, meta.get_u32(p + "expert_count"));
  }
  c.attention_scale = numerics::fdiv(1.0f, numerics::fsqrt(static_cast<float>(c.head_dim)));
  c.rope = read_rope(file, p, c.head_dim, family->rope);
  c.activation = family->activation;
  c.qkv_bias = family->qkv_bias;
  c.qk_norm = family->qk_norm;
  const Tensor& embedding = file.tensor("token_embd.weight");
  c.vocab = embedding.rows();
  c.tied = file.find("output.weight") == nullptr;
  if (c.vocab > numerics::kMaxVocabulary) {
    throw fail(ErrorCode::kUnsupported, "{}: the vocabulary has {} tokens; at most {} are supported", file.path(),
               c.vocab, numerics::kMaxVocabulary);
  }
  return c;
}

}  // namespace isobit
