#include "models/outline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

namespace isobit {
namespace {

using Json = nlohmann::json;
using Names = std::initializer_list<const char*>;
using Numbers = std::vector<int64_t>;

// A file's settings by the first of several names that is there: a number, or one a layer. Empty: there is none.
class Settings {
 public:
  virtual ~Settings() = default;
  virtual Numbers find(const char* name) const = 0;
  virtual std::string architecture() const = 0;

  Numbers any(Names names) const {
    for (const char* name : names) {
      if (Numbers found = find(name); !found.empty()) return found;
    }
    return {};
  }
  std::optional<int64_t> one(Names names) const {
    const Numbers found = any(names);
    return found.size() == 1 ? std::optional(found.front()) : std::nullopt;
  }
};

class GgufSettings final : public Settings {
 public:
  explicit GgufSettings(const Metadata& meta) : meta_(meta) {}
  std::string architecture() const override {
    const MetadataValue* v = meta_.find("general.architecture");
    return v != nullptr && v->type == ValueType::kString ? std::string(std::get<std::string_view>(v->value)) : "";
  }
  Numbers find(const char* name) const override {
    const std::string key = architecture() + "." + name;
    const MetadataValue* v = meta_.find(key);
    if (v == nullptr) return {};
    try {
      return v->type == ValueType::kArray ? meta_.get_i64s(key) : Numbers{meta_.get_i64(key)};
    } catch (const Error&) {
      return {};
    }
  }

 private:
  const Metadata& meta_;
};

class HfSettings final : public Settings {
 public:
  explicit HfSettings(std::string_view text) {
    try {
      json_ = parse_json_file(text, "config.json");
    } catch (const Error&) {
      return;
    }
    if (json_.is_object() && json_.contains("text_config") && json_["text_config"].is_object()) {
      const Json inner = json_["text_config"];
      json_ = inner;
    }
  }
  std::string architecture() const override {
    const auto type = json_.is_object() ? json_.find("model_type") : json_.end();
    return type != json_.end() && type->is_string() ? type->get<std::string>() : "";
  }
  Numbers find(const char* name) const override {
    if (!json_.is_object() || !json_.contains(name)) return {};
    const Json& v = json_[name];
    if (v.is_number_integer()) return {v.get<int64_t>()};
    if (!v.is_array() || !std::ranges::all_of(v, [](const Json& i) { return i.is_number_integer(); })) return {};
    return v.get<Numbers>();
  }

 private:
  Json json_;
};

// The name behind a layer's number: "attn_q.weight" of "blk.3.attn_q.weight". Empty: it belongs to no layer.
std::string_view inside_layer(std::string_view name) {
  for (size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
    size_t end = dot + 1;
    while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end])) != 0) end++;
    if (end > dot + 1 && end < name.size() && name[end] == '.') return name.substr(end + 1);
  }
  return {};
}

bool has_any(std::string_view text, Names words) {
  return std::ranges::any_of(words, [&](const char* word) { return text.find(word) != std::string_view::npos; });
}

std::string part_of(std::string_view name) {
  const std::string_view inner = inside_layer(name);
  if (inner.empty()) {
    if (has_any(name, {"token_embd", "embed_tokens", "embedding", "wte"})) return "embedding";
    if (name.starts_with("output.") || has_any(name, {"lm_head", "cls"})) return "head";
    return "other";
  }
  if (has_any(inner, {"_exps", "experts."})) return "experts";
  if (has_any(inner, {"norm", "Norm", "ln_"})) return "norms and others of the layers";
  if (has_any(inner, {"ssm", "mixer", "time_mix"})) return "states";
  if (has_any(inner, {"ffn", "mlp", "feed_forward", "intermediate"}) || inner.starts_with("output.dense")) return "ffn";
  return has_any(inner, {"attn", "attention"}) ? "attention" : "norms and others of the layers";
}

// What tensors stand for that isobit's decoder has no place for.
struct NotBuilt {
  const char* what;
  bool (*is)(std::string_view name);
  bool keeps_heads = true;  // a token leaves keys and values of its heads behind, if any
};
constexpr NotBuilt kNotBuilt[] = {
    {"layers that keep a state in place of keys and values",
     [](std::string_view n) {
       return has_any(n, {".ssm_", ".A_log", ".time_mix"});
     }},
    {"mixtures of experts",
     [](std::string_view n) {
       return has_any(n, {"_exps.", ".experts."});
     }},
    {"kinds of text told apart by embeddings, as encoders have",
     [](std::string_view n) {
       return has_any(n, {"token_types", "token_type_embeddings"});
     },
     false},
    {"positions that are learned instead of rotated",
     [](std::string_view n) {
       return has_any(n, {"position_embd", "position_embeddings", "wpe."});
     }},
    {"norms with a bias",
     [](std::string_view n) {
       return n.ends_with(".bias") && has_any(n, {"norm", "Norm", ".ln_"});
     }},
    {"keys and values compressed together",
     [](std::string_view n) {
       return has_any(n, {"kv_a_", "kv_b_"});
     },
     false},
};

// Fills in not_built. Returns whether a token leaves keys and values of its heads behind.
bool find_not_built(const Checkpoint& file, ModelOutline& o) {
  bool keeps_heads = true;
  for (const NotBuilt& part : kNotBuilt) {
    const auto matches = [&](const Tensor& t) { return part.is(t.name); };
    const auto first = std::ranges::find_if(file.tensors(), matches);
    if (first == file.tensors().end()) continue;
    const auto more = std::ranges::count_if(file.tensors(), matches) - 1;
    o.not_built.push_back(fmt::format("isobit's decoder does not have {}: {}{}", part.what, first->name,
                                      more > 0 ? fmt::format(" and {} more tensors", more) : ""));
    keeps_heads = keeps_heads && part.keeps_heads;
  }
  return keeps_heads;
}

// What `values` holds for layer i.
int64_t of_layer(const Numbers& values, int64_t i) {
  return values.size() == 1 ? values.front() : values[static_cast<size_t>(i)];
}

std::optional<size_t> kv_bytes(const ModelOutline& o) {
  constexpr int64_t kSane = 1 << 20;
  const int64_t layers = o.layers.value_or(0);
  if (layers <= 0 || layers > 1000) return std::nullopt;
  for (const Numbers* values : {&o.kv_heads, &o.head_dim, &o.value_dim}) {
    if (values->size() != 1 && values->size() != static_cast<size_t>(layers)) return std::nullopt;
    if (std::ranges::any_of(*values, [&](int64_t v) { return v < 0 || v > kSane; })) return std::nullopt;
  }
  size_t elements = 0;
  for (int64_t i = 0; i < layers; i++) {
    elements += static_cast<size_t>(of_layer(o.kv_heads, i) * (of_layer(o.head_dim, i) + of_layer(o.value_dim, i)));
  }
  return elements == 0 ? std::nullopt : std::optional(2 * elements);
}

std::optional<int64_t> embedding_rows(const Checkpoint& file) {
  for (const Tensor& t : file.tensors()) {
    if (t.shape.size() == 2 && has_any(t.name, {"token_embd.", "embed_tokens.", "word_embeddings.", "wte."})) {
      return t.shape.front();
    }
  }
  return std::nullopt;
}

void read_settings(const Settings& s, ModelOutline& o) {
  o.architecture = s.architecture();
  o.layers = s.one({"block_count", "num_hidden_layers", "n_layer", "num_layers", "n_layers"});
  o.hidden = s.one({"embedding_length", "hidden_size", "n_embd", "d_model"});
  o.vocab = s.one({"vocab_size"});
  o.context = s.one({"context_length", "max_position_embeddings", "n_positions", "n_ctx"});
  o.experts = s.one({"expert_count", "num_local_experts", "num_experts", "n_routed_experts"});
  o.experts_used = s.one({"expert_used_count", "num_experts_per_tok"});
  o.q_heads = s.any({"attention.head_count", "num_attention_heads", "n_head", "num_heads"});
  o.kv_heads = s.any({"attention.head_count_kv", "num_key_value_heads"});
  o.head_dim = s.any({"attention.key_length", "head_dim"});
  o.ffn = s.any({"expert_feed_forward_length", "moe_intermediate_size", "feed_forward_length", "intermediate_size",
                 "n_inner", "ffn_dim"});
  if (o.kv_heads.empty()) o.kv_heads = o.q_heads;
  const int64_t heads = o.q_heads.empty() ? 0 : std::ranges::max(o.q_heads);
  if (o.head_dim.empty() && heads > 0 && o.hidden) o.head_dim = {*o.hidden / heads};
  o.value_dim = s.any({"attention.value_length"});
  if (o.value_dim.empty()) o.value_dim = o.head_dim;
}

}  // namespace

ModelOutline read_outline(const Checkpoint& file) {
  ModelOutline o;
  if (const auto config = file.document("config.json")) {
    read_settings(HfSettings(*config), o);
  } else {
    read_settings(GgufSettings(file.metadata()), o);
  }
  if (!o.vocab) o.vocab = embedding_rows(file);
  for (const Tensor& t : file.tensors()) o.bytes_by_part[part_of(t.name)] += t.bytes;
  if (find_not_built(file, o)) o.kv_bytes_per_token = kv_bytes(o);
  return o;
}

}  // namespace isobit
