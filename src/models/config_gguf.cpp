// A model's configuration from GGUF metadata.
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "models/config_reader.h"
#include "models/rope_config.h"
#include "numerics/ieee.h"
#include "numerics/rope_scaling.h"

namespace isobit {
namespace {

class GgufConfig {
 public:
  GgufConfig(const Checkpoint& file, const Family& family)
      : file_(file), meta_(file.metadata()), family_(family), prefix_(std::string(family.gguf) + ".") {}

  ModelConfig read() {
    config_ = start_config(family_);
    ModelConfig& c = config_;
    c.architecture = family_.gguf;
    c.names.ffn_norm = family_.gguf_ffn_norm;
    c.name = meta_.find_string("general.name").value_or(c.architecture);
    if (meta_.find_u32(key("expert_count")).value_or(0) != 0) {
      throw fail(ErrorCode::kUnsupported, "{}: mixture-of-experts models are not supported yet ({} is {})",
                 file_.path(), key("expert_count"), meta_.get_u32(key("expert_count")));
    }
    c.layers.resize(static_cast<size_t>(positive("block_count", 1000)));
    c.hidden = positive("embedding_length", 1 << 20);
    c.context = positive("context_length", int64_t{1} << 31);
    c.norm_eps = meta_.get_f32(key("attention.layer_norm_rms_epsilon"));
    if (family_.scaled_embedding) c.embedding_scale = numerics::fsqrt(static_cast<float>(c.hidden));
    read_soft_caps();
    const std::vector<int64_t> q_heads = per_layer("attention.head_count", 1024),
                               kv_heads = per_layer("attention.head_count_kv", 1024, &q_heads),
                               ffn = per_layer("feed_forward_length", 1 << 22);
    read_windows();
    std::vector<int64_t> divided;
    divided.reserve(q_heads.size());
    for (const int64_t heads : q_heads) divided.push_back(std::max<int64_t>(1, c.hidden / heads));
    const std::vector<int64_t> keys = head_sizes("attention.key_length", divided),
                               values = head_sizes("attention.value_length", keys);
    for (size_t i = 0; i < c.layers.size(); i++) {
      LayerConfig& l = c.layers[i];
      l.q_heads = static_cast<int32_t>(q_heads[i]);
      l.kv_heads = static_cast<int32_t>(kv_heads[i]);
      l.ffn = ffn[i];
      l.head_dim = static_cast<int32_t>(keys[i]);
      l.attention_scale = meta_.find_f32(key("attention.scale")).value_or(default_attention_scale(family_, c, l));
      if (values[i] != keys[i]) {
        throw fail(ErrorCode::kUnsupported, "{}: layer {}: values of {} beside keys of {} a head are not supported",
                   file_.path(), i, values[i], keys[i]);
      }
    }
    read_ropes();
    look_at_tensors();
    return c;
  }

 private:
  std::string key(std::string_view name) const { return prefix_ + std::string(name); }

  int64_t in_range(const std::string& name, int64_t value, int64_t limit) const {
    if (value > 0 && value <= limit) return value;
    throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be in [1, {}]. The file is damaged or not a language model",
               file_.path(), name, value, limit);
  }
  int64_t positive(std::string_view name, int64_t limit) const {
    return in_range(key(name), meta_.get_u32(key(name)), limit);
  }

  // A number, or an array of one a layer.
  std::vector<int64_t> per_layer(std::string_view name, int64_t limit,
                                 const std::vector<int64_t>* otherwise = nullptr) const {
    const std::string k = key(name);
    const MetadataValue* found = meta_.find(k);
    if (found == nullptr && otherwise != nullptr) return *otherwise;
    if (found == nullptr || found->type != ValueType::kArray) {
      return std::vector<int64_t>(config_.layers.size(), in_range(k, meta_.get_u32(k), limit));
    }
    std::vector<int64_t> values = meta_.get_i64s(k);
    if (values.size() != config_.layers.size()) {
      throw fail(ErrorCode::kBadFile, "{}: {} has {} entries for {} layers", file_.path(), k, values.size(),
                 config_.layers.size());
    }
    for (const int64_t v : values) in_range(k, v, limit);
    return values;
  }

  // Elements of a head: a number, or one a layer; layers with a window may have another.
  std::vector<int64_t> head_sizes(const std::string& name, const std::vector<int64_t>& otherwise) const {
    std::vector<int64_t> sizes = per_layer(name, 1024, &otherwise);
    if (!meta_.has(key(name + "_swa"))) return sizes;
    for (size_t i = 0; i < sizes.size(); i++) {
      if (config_.layers[i].window > 0) sizes[i] = positive(name + "_swa", 1024);
    }
    return sizes;
  }

  void read_soft_caps() {
    config_.attention_soft_cap = meta_.find_f32(key("attn_logit_softcapping")).value_or(config_.attention_soft_cap);
    config_.logit_soft_cap = meta_.find_f32(key("final_logit_softcapping")).value_or(config_.logit_soft_cap);
  }

  // The pattern is the family's; newer files state it, as a period or layer by layer.
  void read_windows() {
    const auto window = meta_.find_u32(key("attention.sliding_window"));
    const auto length = static_cast<int64_t>(
        window.value_or(static_cast<uint32_t>(family_.full_attention_every > 0 ? family_.default_window : 0)));
    if (length == 0 || length >= config_.context) return;  // a window as long as the context is none
    const std::string pattern = key("attention.sliding_window_pattern");
    const MetadataValue* stated = meta_.find(pattern);
    std::vector<bool> windowed;
    if (stated != nullptr && stated->type == ValueType::kArray) {
      windowed = meta_.get_bools(pattern);
      if (windowed.size() != config_.layers.size()) {
        throw fail(ErrorCode::kBadFile, "{}: {} has {} entries for {} layers", file_.path(), pattern, windowed.size(),
                   config_.layers.size());
      }
    } else {
      const int32_t every = stated != nullptr ? static_cast<int32_t>(positive("attention.sliding_window_pattern", 1000))
                                              : family_.full_attention_every;
      for (int64_t i = 0; i < config_.layer_count(); i++) windowed.push_back(!sees_everything(i, every));
    }
    for (size_t i = 0; i < config_.layers.size(); i++) {
      config_.layers[i].window = windowed[i] ? static_cast<int32_t>(length) : 0;
    }
  }

  void read_ropes() {
    ModelConfig& c = config_;
    std::vector<int64_t> heads;
    for (const LayerConfig& l : c.layers) heads.push_back(l.head_dim);
    const std::vector<int64_t> dims = head_sizes("rope.dimension_count", heads);
    for (int64_t i = 0; i < c.layer_count(); i++) {
      LayerConfig& l = c.layers[static_cast<size_t>(i)];
      if (family_.no_rope_every > 0 && (i + 1) % family_.no_rope_every == 0) {
        l.rope = -1;
        continue;
      }
      const int64_t dim = dims[static_cast<size_t>(i)];
      if (dim % 2 != 0 || dim > l.head_dim) {
        throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be even and at most the head size {}", file_.path(),
                   key("rope.dimension_count"), dim, l.head_dim);
      }
      const bool local = l.window > 0 && family_.window_rope_theta > 0.0f;
      const float theta = meta_.find_f32(key("rope.freq_base")).value_or(10000.0f);
      const float local_theta = meta_.find_f32(key("rope.freq_base_swa")).value_or(family_.window_rope_theta);
      l.rope = add_rope(c, make_rope(static_cast<int32_t>(dim), family_.gguf_rope,
                                     checked_theta(static_cast<double>(local ? local_theta : theta)),
                                     local ? RopeScaling{} : scaling(static_cast<int32_t>(dim))));
    }
  }

  double checked_theta(double theta) const {
    if (theta >= 1.0 && std::isfinite(theta)) return theta;
    throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be at least 1", file_.path(), key("rope.freq_base"), theta);
  }

  double number(std::string_view name, double otherwise) const {
    return static_cast<double>(meta_.find_f32(key(name)).value_or(static_cast<float>(otherwise)));
  }

  // Llama 3's factors and LongRoPE's come as tensors, the others as numbers. What is unknown is refused, not ignored.
  RopeScaling scaling(int32_t dim) const {
    RopeScaling s;
    s.whole_range = family_.yarn_whole_range;
    s.original_context = static_cast<double>(
        meta_.find_u32(key("rope.scaling.original_context_length")).value_or(static_cast<uint32_t>(config_.context)));
    s.magnitude = number("rope.scaling.attn_factor", 1.0);
    const std::string type(meta_.find_string(key("rope.scaling.type")).value_or("none"));
    if (type == "linear" || type == "yarn") {
      s.factor = static_cast<double>(meta_.get_f32(key("rope.scaling.factor")));
      if (!(s.factor > 0.0)) {
        throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be positive", file_.path(), key("rope.scaling.factor"),
                   s.factor);
      }
    }
    if (type == "linear") {
      s.kind = RopeScaling::Kind::kLinear;
    } else if (type == "yarn") {
      read_yarn(s);
    } else if (type != "none" && type != "longrope") {
      throw fail(ErrorCode::kUnsupported,
                 "{}: rope scaling '{}' is not supported; isobit runs none, linear, llama3, yarn and longrope",
                 file_.path(), type);
    }
    read_factors(s, dim);
    return s;
  }

  void read_yarn(RopeScaling& s) const {
    s.kind = RopeScaling::Kind::kYarn;
    if (number("rope.scaling.yarn_log_multiplier", 0.0) != 0.0) {
      throw fail(ErrorCode::kUnsupported, "{}: {} is not supported; isobit runs yarn without it", file_.path(),
                 key("rope.scaling.yarn_log_multiplier"));
    }
    s.beta_fast = number("rope.scaling.yarn_beta_fast", 32.0);
    s.beta_slow = number("rope.scaling.yarn_beta_slow", 1.0);
    s.magnitude = numerics::dmul(s.magnitude, numerics::yarn_magnitude(s.factor, 1.0));
  }

  void read_factors(RopeScaling& s, int32_t dim) const {
    s.factors = factors("rope_freqs.weight", dim);
    if (s.factors.empty()) {
      s.factors = factors("rope_factors_short.weight", dim);
      s.long_factors = factors("rope_factors_long.weight", dim);
    }
    if (s.factors.empty()) return;
    if (s.kind != RopeScaling::Kind::kNone) {
      throw fail(ErrorCode::kUnsupported, "{}: rotary factors beside another scaling are not supported", file_.path());
    }
    s.kind = RopeScaling::Kind::kFactors;
  }

  std::vector<float> factors(std::string_view name, int32_t dim) const {
    const Tensor* t = file_.find(name);
    if (t == nullptr) return {};
    if (t->dtype != DType::kF32 || t->elements() != dim / 2) {
      throw fail(ErrorCode::kBadFile, "{}: {} has {} elements of {}; {} of F32 are needed", file_.path(), name,
                 t->elements(), t->type_name(), dim / 2);
    }
    std::vector<float> values(static_cast<size_t>(dim / 2));
    std::memcpy(values.data(), t->data, t->bytes);
    return values;
  }

  void look_at_tensors() {
    ModelConfig& c = config_;
    const auto has = [&](const std::string& name) { return file_.find(name) != nullptr; };
    c.vocab = file_.tensor(c.names.embedding + ".weight").rows();
    c.tied = !has(c.names.head + ".weight");
    c.fused_qkv = has(c.names.of_layer(0, c.names.qkv) + ".weight");
    c.qkv_bias = c.qkv_bias || has(c.names.of_layer(0, c.fused_qkv ? c.names.qkv : c.names.q) + ".bias");
    c.output_bias = has(c.names.of_layer(0, c.names.out) + ".bias");
  }

  const Checkpoint& file_;
  const Metadata& meta_;
  const Family& family_;
  std::string prefix_;
  ModelConfig config_;
};

}  // namespace

ModelConfig read_gguf_config(const Checkpoint& file) {
  const std::string architecture(file.metadata().get_string("general.architecture"));
  const Family* family = find_gguf_family(architecture);
  if (family == nullptr) {
    throw fail(ErrorCode::kUnsupported, "{}: architecture '{}' is not supported; isobit runs {}", file.path(),
               architecture, supported_architectures());
  }
  return GgufConfig(file, *family).read();
}

}  // namespace isobit
