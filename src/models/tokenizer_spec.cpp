#include "models/tokenizer_spec.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"
#include "text/tokenizer_json.h"

namespace isobit {
namespace {

std::optional<int32_t> token_id(const Metadata& meta, const std::string& name) {
  const auto id = meta.find_u32("tokenizer.ggml." + name);
  if (!id || *id == 0xffffffffU) return std::nullopt;  // -1 written as u32: the model has no such token
  return static_cast<int32_t>(*id);
}

// A document of a model's folder, or null where it has none.
nlohmann::json json_document(const Checkpoint& file, std::string_view name) {
  const auto text = file.document(name);
  if (!text) return {};
  const std::string path = fmt::format("{}/{}", file.path(), name);
  nlohmann::json json = parse_json_file(*text, path);
  if (!json.is_object()) throw fail(ErrorCode::kBadFile, "{}: is no JSON object; download it again", path);
  return json;
}

// tokenizer_config.json names a token as text or as an object with its "content".
std::optional<int32_t> named_token(const TokenizerSpec& spec, const nlohmann::json& config, const char* key) {
  auto it = config.find(key);
  if (it == config.end()) return std::nullopt;
  const nlohmann::json& content = it->is_object() && it->contains("content") ? (*it)["content"] : *it;
  if (!content.is_string()) return std::nullopt;
  const auto found = std::ranges::find(spec.tokens, content.get<std::string>());
  if (found == spec.tokens.end()) return std::nullopt;
  return static_cast<int32_t>(found - spec.tokens.begin());
}

// A number or a list of them.
void add_end_ids(const nlohmann::json& config, TokenizerSpec& spec) {
  const auto it = config.find("eos_token_id");
  if (it == config.end() || it->is_null()) return;
  for (const nlohmann::json& id : it->is_array() ? *it : nlohmann::json::array({*it})) {
    if (id.is_number_integer() && id >= 0 && id < static_cast<int64_t>(spec.tokens.size())) {
      spec.end_ids.push_back(id.get<int32_t>());
    }
  }
}

TokenizerSpec read_folder_tokenizer(const Checkpoint& file) {
  const auto text = file.document("tokenizer.json");
  if (!text) {
    throw fail(ErrorCode::kNotFound,
               "{}: has no tokenizer.json; download it, or make it with transformers: "
               "AutoTokenizer.from_pretrained(…).save_pretrained(…)",
               file.path());
  }
  TokenizerSpec spec = read_tokenizer_json(*text, file.path() + "/tokenizer.json");
  const nlohmann::json config = json_document(file, "tokenizer_config.json"),
                       model = json_document(file, "config.json");
  // The model's table may have more rows than the tokenizer has tokens.
  const nlohmann::json& part = model.contains("text_config") ? model["text_config"] : model;
  if (const auto rows = part.find("vocab_size"); rows != part.end() && rows->is_number_unsigned()) {
    const auto count = std::min(rows->get<size_t>(), size_t{1} << 24);
    if (count > spec.tokens.size()) {
      spec.tokens.resize(count);
      spec.types.resize(count, TokenType::kUnused);
      spec.mergeable.resize(count, false);
      for (auto* strips : {&spec.strips_left, &spec.strips_right}) {
        if (!strips->empty()) strips->resize(count, false);
      }
    }
  }
  if (const auto id = named_token(spec, config, "bos_token"); id && !spec.bos_id) spec.bos_id = id;
  if (const auto id = named_token(spec, config, "eos_token")) spec.eos_id = id;
  spec.padding_id = named_token(spec, config, "pad_token");
  add_end_ids(part, spec);
  add_end_ids(json_document(file, "generation_config.json"), spec);
  return spec;
}

}  // namespace

TokenizerSpec read_tokenizer_spec(const Checkpoint& file) {
  return file.document("config.json") ? read_folder_tokenizer(file) : read_tokenizer_spec(file.metadata());
}

std::optional<std::string> read_chat_template(const Checkpoint& file) {
  if (const auto text = file.metadata().find_string("tokenizer.chat_template")) return std::string(*text);
  if (const auto text = file.document("chat_template.jinja")) return std::string(*text);
  const nlohmann::json config = json_document(file, "tokenizer_config.json");
  const auto it = config.find("chat_template");
  if (it == config.end()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return std::nullopt;
  for (const nlohmann::json& entry : *it) {
    if (entry.is_object() && entry.value("name", "") == "default") return entry.value("template", "");
  }
  return std::nullopt;
}

TokenizerSpec read_tokenizer_spec(const Metadata& meta) {
  const std::string prefix = "tokenizer.ggml.";
  TokenizerSpec spec;
  const auto model = meta.get_string(prefix + "model");
  if (model != "gpt2" && model != "llama") {
    throw fail(ErrorCode::kUnsupported,
               "tokenizer '{}' is not supported; isobit has gpt2 (byte-level BPE) and llama (SentencePiece BPE)",
               model);
  }
  spec.kind = model == "gpt2" ? TokenizerKind::kBpe : TokenizerKind::kSpm;
  spec.pre = meta.find_string(prefix + "pre").value_or("");
  for (std::string_view token : meta.get_strings(prefix + "tokens")) spec.tokens.emplace_back(token);
  for (int64_t type : meta.find_i64s(prefix + "token_type").value_or(std::vector<int64_t>{})) {
    spec.types.push_back(static_cast<TokenType>(type));
  }
  spec.scores = meta.find_f32s(prefix + "scores").value_or(std::vector<float>{});
  if (const auto merges = meta.find_strings(prefix + "merges")) {
    for (std::string_view merge : *merges) spec.merges.emplace_back(merge);
  }
  spec.bos_id = token_id(meta, "bos_token_id");
  spec.eos_id = token_id(meta, "eos_token_id");
  spec.unknown_id = token_id(meta, "unknown_token_id");
  spec.padding_id = token_id(meta, "padding_token_id");
  spec.eot_id = token_id(meta, "eot_token_id");
  spec.eom_id = token_id(meta, "eom_token_id");
  spec.add_bos = meta.find_bool(prefix + "add_bos_token");
  spec.add_eos = meta.find_bool(prefix + "add_eos_token");
  spec.add_space_prefix = meta.find_bool(prefix + "add_space_prefix");
  spec.remove_extra_whitespaces = meta.find_bool(prefix + "remove_extra_whitespaces").value_or(false);
  return spec;
}

}  // namespace isobit
