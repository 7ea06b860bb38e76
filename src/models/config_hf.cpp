// A model's configuration from config.json, in the spelling of transformers 5 and of what came before it.
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "models/config_reader.h"
#include "models/rope_config.h"
#include "numerics/ieee.h"
#include "numerics/rope_scaling.h"

namespace isobit {
namespace {

using Json = nlohmann::json;

// One object of config.json. A field that is null counts as absent.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(&json), where_(std::move(where)) {}

  const Json* find(const char* name) const {
    const auto it = json_->find(name);
    return it == json_->end() || it->is_null() ? nullptr : &*it;
  }
  bool has(const char* name) const { return find(name) != nullptr; }

  std::optional<int64_t> integer(const char* name, int64_t low, int64_t high) const {
    const Json* v = find(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_number_integer()) throw wrong(name, "an integer");
    const auto value = v->is_number_unsigned() && v->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)
                           ? INT64_MAX
                           : v->get<int64_t>();
    if (value < low || value > high) {
      throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be in [{}, {}]", where_, name, v->dump(), low, high);
    }
    return value;
  }
  int64_t needed(const char* name, int64_t low, int64_t high) const { return need(name, integer(name, low, high)); }

  std::optional<double> number(const char* name) const {
    const Json* v = find(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_number()) throw wrong(name, "a number");
    return v->get<double>();
  }
  double positive(const char* name) const {
    const double value = need(name, number(name));
    if (value > 0.0) return value;
    throw fail(ErrorCode::kBadFile, "{}: {} is {}; it must be positive", where_, name, value);
  }

  bool flag(const char* name, bool otherwise) const {
    const Json* v = find(name);
    if (v == nullptr) return otherwise;
    if (!v->is_boolean()) throw wrong(name, "true or false");
    return v->get<bool>();
  }

  std::optional<std::string> text(const char* name) const {
    const Json* v = find(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_string()) throw wrong(name, "text");
    return v->get<std::string>();
  }

  // An array of `count` entries that are all of the wanted kind.
  const Json* list(const char* name, size_t count, bool (Json::*kind)() const noexcept) const {
    const Json* v = find(name);
    if (v == nullptr) return nullptr;
    if (!v->is_array() || v->size() != count) throw wrong(name, fmt::format("a list of {}", count));
    for (const Json& item : *v) {
      if (!(item.*kind)()) throw wrong(name, fmt::format("a list of {} of one kind", count));
    }
    return v;
  }

  std::optional<Fields> object(const char* name) const {
    const Json* v = find(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_object()) throw wrong(name, "an object");
    return Fields(*v, where_ + ", " + name);
  }

  const std::string& where() const { return where_; }

 private:
  Error wrong(const char* name, std::string_view wanted) const {
    return fail(ErrorCode::kBadFile, "{}: {} is {:.60}; {} is wanted", where_, name, json_->at(name).dump(), wanted);
  }
  template <typename T>
  T need(const char* name, std::optional<T> value) const {
    if (value) return *value;
    throw fail(ErrorCode::kBadFile, "{}: {} is missing and the model needs it", where_, name);
  }

  const Json* json_;
  std::string where_;
};

class HfConfig {
 public:
  HfConfig(const Checkpoint& file, const Fields& fields, const Family& family)
      : file_(file), fields_(fields), family_(family) {}

  ModelConfig read() {
    config_ = start_config(family_);
    ModelConfig& c = config_;
    c.architecture = family_.model_type;
    c.name = fields_.text("_name_or_path").value_or("");
    if (c.name.empty()) c.name = family_.name;
    refuse_what_is_not_built();
    c.layers.resize(static_cast<size_t>(fields_.needed("num_hidden_layers", 1, 1000)));
    c.hidden = fields_.needed("hidden_size", 1, 1 << 20);
    c.vocab = fields_.needed("vocab_size", 1, int64_t{1} << 31);
    c.context = fields_.needed("max_position_embeddings", 1, int64_t{1} << 31);
    c.norm_eps = static_cast<float>(fields_.number("rms_norm_eps").value_or(1e-6));
    if (family_.scaled_embedding) c.embedding_scale = numerics::fsqrt(static_cast<float>(c.hidden));
    c.weights_less_one = family_.hf_weights_less_one;
    c.attention_soft_cap = soft_cap("attn_logit_softcapping", c.attention_soft_cap);
    c.logit_soft_cap = soft_cap("final_logit_softcapping", c.logit_soft_cap);
    read_heads();
    read_windows();
    read_ropes();
    look_at_tensors();
    return c;
  }

 private:
  // What would otherwise be ignored and give wrong answers.
  void refuse_what_is_not_built() const {
    for (const char* name : {"num_local_experts", "num_experts", "n_routed_experts"}) {
      if (const int64_t n = fields_.integer(name, 0, 1 << 20).value_or(0); n > 0) {
        throw fail(ErrorCode::kUnsupported, "{}: mixture-of-experts models are not supported yet ({} is {})",
                   fields_.where(), name, n);
      }
    }
    for (const char* name : {"mlp_bias", "use_bidirectional_attention", "attn_output_gate"}) {
      if (fields_.flag(name, false)) {
        throw fail(ErrorCode::kUnsupported, "{}: {} is true, which is not supported", fields_.where(), name);
      }
    }
    const bool gelu = family_.activation == GatedActivation::kGelu;
    // Gemma's hidden_act is a leftover that says "gelu"; hidden_activation counts.
    const char* wanted = gelu ? "gelu_pytorch_tanh" : "silu";
    const std::string act = fields_.text(gelu ? "hidden_activation" : "hidden_act").value_or(wanted);
    if (act != wanted) {
      throw fail(ErrorCode::kUnsupported, "{}: the activation is '{}'; isobit runs {} with {}", fields_.where(), act,
                 family_.name, wanted);
    }
  }

  // null there means none, absence the family's.
  float soft_cap(const char* name, float otherwise) const {
    return static_cast<float>(fields_.number(name).value_or(static_cast<double>(otherwise)));
  }

  void read_heads() {
    ModelConfig& c = config_;
    const auto q_heads = static_cast<int32_t>(fields_.needed("num_attention_heads", 1, 1024));
    const auto kv_heads = static_cast<int32_t>(fields_.integer("num_key_value_heads", 1, 1024).value_or(q_heads));
    const auto head_dim = static_cast<int32_t>(fields_.integer("head_dim", 1, 1024).value_or(c.hidden / q_heads));
    const int64_t ffn = fields_.needed("intermediate_size", 1, 1 << 22);
    const bool bias = fields_.flag("attention_bias", false);
    c.qkv_bias = c.qkv_bias || bias;
    c.output_bias = bias;
    for (LayerConfig& l : c.layers) {
      l.q_heads = q_heads;
      l.kv_heads = kv_heads;
      l.head_dim = head_dim;
      l.ffn = ffn;
      const auto scalar = fields_.number("query_pre_attn_scalar");
      if (scalar && !(*scalar > 0.0)) {
        throw fail(ErrorCode::kBadFile, "{}: query_pre_attn_scalar is {}; it must be positive", fields_.where(),
                   *scalar);
      }
      l.attention_scale = scalar ? numerics::fdiv(1.0f, numerics::fsqrt(static_cast<float>(*scalar)))
                                 : default_attention_scale(family_, c, l);
    }
  }

  void read_windows() {
    ModelConfig& c = config_;
    const bool used = fields_.flag("use_sliding_window", true);
    const auto length =
        static_cast<int32_t>(fields_.integer("sliding_window", 0, INT32_MAX)
                                 .value_or(family_.full_attention_every > 0 ? family_.default_window : 0));
    if (!used || length == 0) return;
    const Json* types = fields_.list("layer_types", c.layers.size(), &Json::is_string);
    const int64_t every = fields_.integer("sliding_window_pattern", 1, 1000).value_or(family_.full_attention_every);
    // Qwen's: the first layers see everything.
    const int64_t first =
        fields_.has("use_sliding_window") ? fields_.integer("max_window_layers", 0, INT32_MAX).value_or(0) : 0;
    for (int64_t i = 0; i < c.layer_count(); i++) {
      const auto at = static_cast<size_t>(i);
      bool windowed = i >= first && !sees_everything(i, static_cast<int32_t>(every));
      if (types != nullptr) {
        const auto type = (*types)[at].get<std::string>();
        windowed = type == "sliding_attention";
        if (!windowed && type != "full_attention") {
          throw fail(ErrorCode::kUnsupported,
                     "{}: layer {} is of type '{}'; isobit runs full_attention and "
                     "sliding_attention",
                     fields_.where(), i, type);
        }
      }
      c.layers[at].window = windowed ? length : 0;
    }
  }

  void read_ropes() {
    ModelConfig& c = config_;
    const Json* listed = fields_.list("no_rope_layers", c.layers.size(), &Json::is_number);
    const int64_t every = fields_.integer("no_rope_layer_interval", 1, 1000).value_or(family_.no_rope_every);
    for (int64_t i = 0; i < c.layer_count(); i++) {
      LayerConfig& l = c.layers[static_cast<size_t>(i)];
      const bool still = family_.no_rope_every > 0 &&
                         (listed != nullptr ? (*listed)[static_cast<size_t>(i)] == 0 : (i + 1) % every == 0);
      l.rope = still ? -1 : add_rope(c, rope_of(l));
    }
  }

  RopeConfig rope_of(const LayerConfig& l) const {
    const bool local = l.window > 0 && family_.window_rope_theta > 0.0f;
    std::optional<Fields> parameters = fields_.object("rope_parameters");
    if (!parameters) parameters = fields_.object("rope_scaling");
    // transformers 5 has an object for each kind of layer where they differ.
    const bool nested = parameters && parameters->has("full_attention");
    if (nested) parameters = parameters->object(local ? "sliding_attention" : "full_attention");
    if (local && !nested) parameters.reset();
    const double plain =
        local ? fields_.number("rope_local_base_freq").value_or(static_cast<double>(family_.window_rope_theta))
              : fields_.number("rope_theta").value_or(10000.0);
    const double theta = parameters ? parameters->number("rope_theta").value_or(plain) : plain;
    if (!(theta >= 1.0) || !std::isfinite(theta)) {
      throw fail(ErrorCode::kBadFile, "{}: rope_theta is {}; it must be at least 1", fields_.where(), theta);
    }
    double share = fields_.number("partial_rotary_factor").value_or(1.0);
    if (parameters) share = parameters->number("partial_rotary_factor").value_or(share);
    const double turning = std::floor(static_cast<double>(l.head_dim) * share);
    if (!(turning >= 2.0 && turning <= l.head_dim) || static_cast<int32_t>(turning) % 2 != 0) {
      throw fail(ErrorCode::kBadFile,
                 "{}: partial_rotary_factor is {}, which makes {} of {} elements turn; an even "
                 "number is needed",
                 fields_.where(), share, turning, l.head_dim);
    }
    const auto dim = static_cast<int32_t>(turning);
    return make_rope(dim, RopeLayout::kHalves, theta, parameters ? scaling(*parameters, dim) : RopeScaling{});
  }

  RopeScaling scaling(const Fields& f, int32_t dim) const {
    RopeScaling s;
    const std::string type = f.text("rope_type").value_or(f.text("type").value_or("default"));
    if (type == "default") return s;
    s.original_context =
        f.number("original_max_position_embeddings")
            .value_or(
                fields_.number("original_max_position_embeddings").value_or(static_cast<double>(config_.context)));
    if (type == "linear") {
      s.kind = RopeScaling::Kind::kLinear;
      s.factor = f.positive("factor");
    } else if (type == "llama3") {
      s.kind = RopeScaling::Kind::kLlama3;
      s.factor = f.positive("factor");
      s.low = f.positive("low_freq_factor");
      s.high = f.positive("high_freq_factor");
    } else if (type == "yarn") {
      read_yarn(f, s);
    } else if (type == "longrope" || type == "su") {
      read_longrope(f, s, dim);
    } else {
      throw fail(ErrorCode::kUnsupported,
                 "{}: rope scaling '{}' is not supported; isobit runs default, linear, llama3, yarn and longrope",
                 f.where(), type);
    }
    return s;
  }

  void read_yarn(const Fields& f, RopeScaling& s) const {
    s.kind = RopeScaling::Kind::kYarn;
    s.factor = f.positive("factor");
    s.beta_fast = f.number("beta_fast").value_or(32.0);
    s.beta_slow = f.number("beta_slow").value_or(1.0);
    s.whole_range = f.flag("truncate", family_.yarn_whole_range);
    const double m = f.number("mscale").value_or(0.0), all = f.number("mscale_all_dim").value_or(0.0);
    const double magnitude = m != 0.0 && all != 0.0 ? numerics::ddiv(numerics::yarn_magnitude(s.factor, m),
                                                                     numerics::yarn_magnitude(s.factor, all))
                                                    : numerics::yarn_magnitude(s.factor, 1.0);
    s.magnitude = f.number("attention_factor").value_or(magnitude);
  }

  void read_longrope(const Fields& f, RopeScaling& s, int32_t dim) const {
    s.kind = RopeScaling::Kind::kFactors;
    s.factors = factors(f, "short_factor", dim);
    s.long_factors = factors(f, "long_factor", dim);
    const double stretched = numerics::ddiv(static_cast<double>(config_.context), s.original_context);
    s.factor = f.number("factor").value_or(stretched);
    s.magnitude = f.number("attention_factor").value_or(numerics::long_magnitude(s.factor, s.original_context));
  }

  static std::vector<float> factors(const Fields& f, const char* name, int32_t dim) {
    const Json* list = f.list(name, static_cast<size_t>(dim / 2), &Json::is_number);
    if (list == nullptr) throw fail(ErrorCode::kBadFile, "{}: {} is missing", f.where(), name);
    return list->get<std::vector<float>>();
  }

  void look_at_tensors() {
    ModelConfig& c = config_;
    const auto has = [&](const std::string& name) { return file_.find(name) != nullptr; };
    std::string prefix = "model.";
    for (const char* other : {"language_model.model.", "model.language_model."}) {
      if (has(other + std::string("embed_tokens.weight"))) prefix = other;
    }
    c.names = TensorNames::hugging_face(prefix, c.post_norms);
    c.tied = fields_.flag("tie_word_embeddings", family_.scaled_embedding) || !has(c.names.head + ".weight");
    c.fused_qkv = has(c.names.of_layer(0, c.names.qkv) + ".weight");
  }

  const Checkpoint& file_;
  const Fields& fields_;
  const Family& family_;
  ModelConfig config_;
};

}  // namespace

ModelConfig read_hf_config(const Checkpoint& file) {
  const std::string where = file.path() + "/config.json";
  const Json json = parse_json_file(file.document("config.json").value(), where);
  if (!json.is_object()) throw fail(ErrorCode::kBadFile, "{}: is no JSON object; download it again", where);
  const Fields whole(json, where);
  const std::string outer = whole.text("model_type").value_or("");
  // Models that see pictures keep the decoder's settings in text_config.
  const std::optional<Fields> part = whole.object("text_config");
  const Fields& fields = part ? *part : whole;
  const std::string type = fields.text("model_type").value_or(outer);
  const Family* family = find_hf_family(type);
  if (family == nullptr) {
    throw fail(ErrorCode::kUnsupported, "{}: model_type '{}' is not supported; isobit runs {}", where, type,
               supported_architectures());
  }
  return HfConfig(file, fields, *family).read();
}

}  // namespace isobit
