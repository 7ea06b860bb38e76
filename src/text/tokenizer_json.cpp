#include "text/tokenizer_json.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "text/pretokenizer.h"

namespace isobit {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxTokens = 1 << 24;
constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581

class TokenizerJson {
 public:
  TokenizerJson(const Json& json, std::string_view name) : json_(json), name_(name) {}

  TokenizerSpec read() {
    if (!json_.is_object()) throw bad("is no JSON object");
    const Json& model = part(json_, "model");
    const std::string type = text(model, "type", "BPE");
    if (type != "BPE") throw unsupported("a model of type '{}'; isobit has BPE", type);
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!text(model, affix, "").empty()) throw unsupported("{} '{}'", affix, text(model, affix, ""));
    }
    read_vocabulary(model);
    read_added_tokens();
    read_merges(model);
    if (byte_level(part(json_, "pre_tokenizer"))) {
      read_byte_level(model);
    } else {
      read_characters(model);
    }
    read_template(part(json_, "post_processor"));
    return std::move(spec_);
  }

 private:
  template <typename... Args>
  [[nodiscard]] Error bad(fmt::format_string<Args...> format, Args&&... args) const {
    return {ErrorCode::kBadFile,
            fmt::format("{}: {}; download it again", name_, fmt::format(format, std::forward<Args>(args)...))};
  }
  template <typename... Args>
  [[nodiscard]] Error unsupported(fmt::format_string<Args...> format, Args&&... args) const {
    return {ErrorCode::kUnsupported,
            fmt::format("{}: {} is not supported", name_, fmt::format(format, std::forward<Args>(args)...))};
  }

  static const Json& part(const Json& json, const char* key) {
    static const Json kNothing;
    const auto it = json.is_object() ? json.find(key) : json.end();
    return json.is_object() && it != json.end() ? *it : kNothing;
  }
  std::string text(const Json& json, const char* key, const char* otherwise) const {
    const Json& v = part(json, key);
    if (v.is_null()) return otherwise;
    if (!v.is_string()) throw bad("{} is {:.60}; text is wanted", key, v.dump());
    return v.get<std::string>();
  }
  bool flag(const Json& json, const char* key, bool otherwise) const {
    const Json& v = part(json, key);
    if (v.is_null()) return otherwise;
    if (!v.is_boolean()) throw bad("{} is {:.60}; true or false is wanted", key, v.dump());
    return v.get<bool>();
  }

  void put(int64_t id, std::string name, TokenType type) {
    if (id < 0 || id >= kMaxTokens)
      throw bad("token '{}' has the id {}; from 0 to {} are read", name, id, kMaxTokens - 1);
    const auto at = static_cast<size_t>(id);
    if (spec_.tokens.size() <= at) {
      spec_.tokens.resize(at + 1);
      spec_.types.resize(at + 1, TokenType::kUnused);
      spec_.mergeable.resize(at + 1, false);
    }
    if (!spec_.tokens[at].empty() && spec_.tokens[at] != name) {
      throw bad("tokens '{}' and '{}' have the same id {}", spec_.tokens[at], name, id);
    }
    spec_.tokens[at] = std::move(name);
    spec_.types[at] = type;
  }

  void read_vocabulary(const Json& model) {
    const Json& vocab = part(model, "vocab");
    if (!vocab.is_object() || vocab.empty()) throw bad("model.vocab is missing or empty");
    for (const auto& [name, id] : vocab.items()) {
      if (!id.is_number_integer()) throw bad("model.vocab: token '{}' has no number", name);
      put(id.get<int64_t>(), name, TokenType::kNormal);
    }
    spec_.mergeable.assign(spec_.tokens.size(), false);
    for (const auto& [name, id] : vocab.items()) spec_.mergeable[id.get<size_t>()] = true;
  }

  void read_added_tokens() {
    const Json& added = part(json_, "added_tokens");
    if (!added.is_null() && !added.is_array()) throw bad("added_tokens is no list");
    bool strips = false;
    for (const Json& token : added) {
      const std::string content = text(token, "content", "");
      const Json& id = part(token, "id");
      if (!id.is_number_integer() || content.empty()) throw bad("added_tokens: an entry has no id or no content");
      if (flag(token, "single_word", false)) throw unsupported("token '{}' with single_word", content);
      put(id.get<int64_t>(), content, flag(token, "special", false) ? TokenType::kControl : TokenType::kUserDefined);
      strips = strips || flag(token, "lstrip", false) || flag(token, "rstrip", false);
    }
    if (!strips) return;
    spec_.strips_left.assign(spec_.tokens.size(), false);
    spec_.strips_right.assign(spec_.tokens.size(), false);
    for (const Json& token : added) {
      const auto id = part(token, "id").get<size_t>();
      spec_.strips_left[id] = flag(token, "lstrip", false);
      spec_.strips_right[id] = flag(token, "rstrip", false);
    }
  }

  // "left right", or since version 0.20 [left, right].
  void read_merges(const Json& model) {
    const Json& merges = part(model, "merges");
    if (!merges.is_array()) throw bad("model.merges is missing");
    for (const Json& merge : merges) {
      if (merge.is_string()) {
        spec_.merges.push_back(merge.get<std::string>());
        continue;
      }
      if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
        throw bad("model.merges[{}] is {:.60}; two tokens are wanted", spec_.merges.size(), merge.dump());
      }
      spec_.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    }
  }

  bool byte_level(const Json& pre) const {
    if (text(pre, "type", "") == "ByteLevel") return true;
    const Json& steps = part(pre, "pretokenizers");
    return std::any_of(steps.begin(), steps.end(), [&](const Json& s) { return byte_level(s); });
  }

  void read_byte_level(const Json& model) {
    spec_.kind = TokenizerKind::kBpe;
    spec_.ignore_merges = flag(model, "ignore_merges", false);
    const Json& normalizer = part(json_, "normalizer");
    const std::string kind = text(normalizer, "type", "");
    if (!kind.empty() && kind != "NFC") throw unsupported("the normalizer '{}' with byte-level BPE", kind);
    spec_.normalize_nfc = kind == "NFC";
    spec_.add_bos = spec_.add_eos = false;
    const Json& pre = part(json_, "pre_tokenizer");
    const Json alone = Json::array({pre});
    const Json& steps = text(pre, "type", "") == "Sequence" ? part(pre, "pretokenizers") : alone;
    spec_.pre = split_name(steps);
  }

  // The name under which isobit knows the pieces that these steps cut.
  std::string split_name(const Json& steps) const {
    const Json& last = steps.back();
    if (text(last, "type", "") != "ByteLevel") throw unsupported("a pre-tokenizer after ByteLevel");
    if (flag(last, "add_prefix_space", true)) throw unsupported("ByteLevel with add_prefix_space");
    const bool by_gpt2 = flag(last, "use_regex", true);
    if (steps.size() == 1 && by_gpt2) return "gpt-2";
    const Json& first = steps.front();
    const std::string type = text(first, "type", "");
    if (steps.size() == 2 && type == "Digits" && flag(first, "individual_digits", false) && by_gpt2) return "smollm";
    if (steps.size() == 2 && type == "Split" && !by_gpt2) {
      const std::string pattern = text(part(first, "pattern"), "Regex", "");
      const PreTokenizerFamily* family = find_pretokenizer_by_pattern(pattern);
      if (family != nullptr && text(first, "behavior", "") == "Isolated" && !flag(first, "invert", false)) {
        return std::string(family->names.front());
      }
      throw unsupported("the pre-tokenizer that splits by {}", pattern);
    }
    throw unsupported("the pre-tokenizer {:.200}", steps.dump());
  }

  void read_characters(const Json& model) {
    spec_.kind = TokenizerKind::kSpm;
    spec_.space_prefix = SpacePrefix::kNone;
    spec_.add_bos = spec_.add_eos = false;
    spec_.fuse_unknown = flag(model, "fuse_unk", false);
    const bool bytes = flag(model, "byte_fallback", false);
    if (const std::string unknown = text(model, "unk_token", ""); !unknown.empty()) spec_.unknown_id = id_of(unknown);
    for (size_t id = 0; id < spec_.tokens.size(); id++) {
      const std::string& t = spec_.tokens[id];
      const bool byte = t.size() == 6 && t.starts_with("<0x") && t.ends_with(">");
      if (byte && bytes) spec_.types[id] = TokenType::kByte;
      if (byte && !bytes) spec_.mergeable[id] = false;  // then it is a text like any other, and no byte's
    }
    if (spec_.unknown_id) spec_.types[static_cast<size_t>(*spec_.unknown_id)] = TokenType::kUnknown;
    bool spaces_replaced = read_normalizer(part(json_, "normalizer"));
    spaces_replaced = read_metaspace(part(json_, "pre_tokenizer")) || spaces_replaced;
    if (!spaces_replaced) throw unsupported("a BPE of characters that keeps spaces");
  }

  int32_t id_of(const std::string& token) const {
    const auto found = std::ranges::find(spec_.tokens, token);
    if (found == spec_.tokens.end()) throw bad("token '{}' is named but not in the vocabulary", token);
    return static_cast<int32_t>(found - spec_.tokens.begin());
  }

  // True where spaces become U+2581.
  bool read_normalizer(const Json& n) {
    const std::string type = text(n, "type", "");
    if (type.empty()) return false;
    if (type == "Sequence") {
      bool replaced = false;
      for (const Json& step : part(n, "normalizers")) replaced = read_normalizer(step) || replaced;
      return replaced;
    }
    if (type == "Prepend" && text(n, "prepend", "") == kMetaspace) {
      spec_.space_prefix = SpacePrefix::kEachPart;
      return false;
    }
    if (type == "Replace" && text(part(n, "pattern"), "String", "") == " " && text(n, "content", "") == kMetaspace) {
      return true;
    }
    throw unsupported("the normalizer {:.200}", n.dump());
  }

  bool read_metaspace(const Json& p) {
    const std::string type = text(p, "type", "");
    if (type.empty()) return false;
    // Gemma's: splits at spaces, of which the normalizer has left none.
    if (type == "Split" && text(part(p, "pattern"), "String", "") == " ") return false;
    if (type != "Metaspace" || text(p, "replacement", "") != kMetaspace) {
      throw unsupported("the pre-tokenizer {:.200}", p.dump());
    }
    const std::string scheme = text(p, "prepend_scheme", flag(p, "add_prefix_space", true) ? "always" : "never");
    if (scheme == "always") {
      spec_.space_prefix = SpacePrefix::kEachPartWithout;
    } else if (scheme == "first") {
      spec_.space_prefix = SpacePrefix::kFirstPartWithout;
    } else if (scheme != "never") {
      throw unsupported("Metaspace's prepend_scheme '{}'", scheme);
    }
    spec_.split_before_spaces = flag(p, "split", true);
    return true;
  }

  // One token before the text, one after it.
  void read_template(const Json& p) {
    const std::string type = text(p, "type", "");
    if (type == "Sequence") {
      for (const Json& step : part(p, "processors")) read_template(step);
      return;
    }
    if (type.empty() || type == "ByteLevel") return;
    if (type != "TemplateProcessing") throw unsupported("the post-processor '{}'", type);
    bool after = false;
    for (const Json& item : part(p, "single")) {
      if (item.contains("Sequence")) {
        after = true;
        continue;
      }
      const int32_t id = id_of(text(part(item, "SpecialToken"), "id", ""));
      std::optional<bool>& adds = after ? spec_.add_eos : spec_.add_bos;
      if (adds.value_or(false)) throw unsupported("more than one special token at an end of a text");
      adds = true;
      (after ? spec_.eos_id : spec_.bos_id) = id;
    }
  }

  const Json& json_;
  std::string_view name_;
  TokenizerSpec spec_;
};

}  // namespace

TokenizerSpec read_tokenizer_json(std::string_view text, std::string_view name) {
  const Json json = parse_json_file(text, name);
  return TokenizerJson(json, name).read();
}

}  // namespace isobit
