#include "models/hf_documents.h"

#include "base/error.h"
#include "base/json.h"
#include "models/family.h"
#include "models/tokenizer_spec.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"

namespace isobit {
namespace {

using OrderedJson = nlohmann::ordered_json;

Error refused(const Checkpoint& file, std::string_view what) {
  return fail(ErrorCode::kUnsupported, "{}: {} cannot be converted; convert from the model's Hugging Face folder",
              file.path(), what);
}

struct Convertible {
  const Family* family;
  const char* architecture;  // transformers' class
};
constexpr Convertible kConvertible[] = {{&kLlama, "LlamaForCausalLM"},
                                        {&kMistral, "MistralForCausalLM"},
                                        {&kQwen2, "Qwen2ForCausalLM"},
                                        {&kQwen3, "Qwen3ForCausalLM"}};

const Convertible& find_convertible(const Checkpoint& file, const ModelConfig& c) {
  const Family* family = find_gguf_family(c.architecture);
  for (const Convertible& x : kConvertible) {
    if (x.family == family) return x;
  }
  throw refused(file, fmt::format("a model of the family {}", c.family));
}

void refuse_scaled_rope(const Checkpoint& file, const ModelConfig& c) {
  const auto scaling = file.metadata().find_string(c.architecture + ".rope.scaling.type");
  if ((scaling && *scaling != "none") || file.find("rope_freqs.weight") != nullptr) {
    throw refused(file, "rope scaling");
  }
  for (const LayerConfig& l : c.layers) {
    if (l.rope < 0 || c.ropes[static_cast<size_t>(l.rope)].dim != l.head_dim) throw refused(file, "a partial rotation");
    if (l != c.layers.front()) throw refused(file, "a model whose layers differ");
  }
}

std::string config_json(const Checkpoint& file, const ModelConfig& c, const TokenizerSpec& tokens) {
  const Convertible& x = find_convertible(file, c);
  refuse_scaled_rope(file, c);
  const LayerConfig& l = c.layers.front();
  const double theta = file.metadata().find_f32(c.architecture + ".rope.freq_base").value_or(10000.0f);
  OrderedJson json = {{"architectures", {x.architecture}},
                      {"model_type", x.family->model_type},
                      {"_name_or_path", c.name},
                      {"torch_dtype", "bfloat16"},
                      {"vocab_size", c.vocab},
                      {"hidden_size", c.hidden},
                      {"intermediate_size", l.ffn},
                      {"num_hidden_layers", c.layer_count()},
                      {"num_attention_heads", l.q_heads},
                      {"num_key_value_heads", l.kv_heads},
                      {"head_dim", l.head_dim},
                      {"hidden_act", "silu"},
                      {"max_position_embeddings", c.context},
                      {"rms_norm_eps", static_cast<double>(c.norm_eps)},
                      {"rope_theta", theta},
                      {"attention_bias", c.qkv_bias && !x.family->qkv_bias},
                      {"tie_word_embeddings", c.tied}};
  if (l.window > 0) json["sliding_window"] = l.window;
  if (tokens.bos_id) json["bos_token_id"] = *tokens.bos_id;
  if (tokens.eos_id) json["eos_token_id"] = *tokens.eos_id;
  return json.dump(2) + "\n";
}

std::string generation_json(const TokenizerSpec& tokens) {
  OrderedJson ends = OrderedJson::array();
  for (const auto& id : {tokens.eos_id, tokens.eot_id, tokens.eom_id}) {
    if (id) ends.push_back(*id);
  }
  OrderedJson json = OrderedJson::object();
  if (tokens.bos_id) json["bos_token_id"] = *tokens.bos_id;
  if (!ends.empty()) json["eos_token_id"] = ends;
  return json.dump(2) + "\n";
}

OrderedJson byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

// How transformers spells the pieces of a pre-tokenizer that isobit knows.
OrderedJson pre_tokenizer(const Checkpoint& file, const PreTokenizerFamily& family) {
  OrderedJson first;
  if (family.names.front() == "gpt-2") return byte_level(true);
  if (family.names.front() == "smollm") {
    first = {{"type", "Digits"}, {"individual_digits", true}};
    return {{"type", "Sequence"}, {"pretokenizers", {first, byte_level(true)}}};
  }
  if (family.published.empty()) throw refused(file, fmt::format("the pre-tokenizer {}", family.names.front()));
  first = {{"type", "Split"}, {"pattern", {{"Regex", family.published}}}, {"behavior", "Isolated"}, {"invert", false}};
  return {{"type", "Sequence"}, {"pretokenizers", {first, byte_level(false)}}};
}

OrderedJson added_tokens(const TokenizerSpec& tokens) {
  OrderedJson all = OrderedJson::array();
  for (size_t id = 0; id < tokens.types.size(); id++) {
    const TokenType type = tokens.types[id];
    if (type != TokenType::kControl && type != TokenType::kUserDefined) continue;
    all.push_back({{"id", id},
                   {"content", tokens.tokens[id]},
                   {"single_word", false},
                   {"lstrip", false},
                   {"rstrip", false},
                   {"normalized", false},
                   {"special", type == TokenType::kControl}});
  }
  return all;
}

OrderedJson bpe_model(const TokenizerSpec& tokens, bool ignore_merges) {
  OrderedJson vocab = OrderedJson::object(), merges = OrderedJson::array();
  for (size_t id = 0; id < tokens.tokens.size(); id++) {
    if (tokens.types.empty() || tokens.types[id] != TokenType::kUnused) vocab[tokens.tokens[id]] = id;
  }
  for (const std::string& merge : tokens.merges) {
    const size_t space = merge.find(' ', 1);
    merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"fuse_unk", false},
          {"end_of_word_suffix", nullptr},
          {"byte_fallback", false},
          {"ignore_merges", ignore_merges},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

// A text's BOS and EOS.
OrderedJson post_processor(const TokenizerSpec& tokens, const Tokenizer& tokenizer) {
  if (!tokenizer.add_bos() && !tokenizer.add_eos()) return byte_level(true);
  OrderedJson single = OrderedJson::array(), special = OrderedJson::object();
  const auto add = [&](const std::optional<int32_t>& id) {
    const std::string& name = tokens.tokens[static_cast<size_t>(id.value())];
    single.push_back({{"SpecialToken", {{"id", name}, {"type_id", 0}}}});
    special[name] = {{"id", name}, {"ids", {*id}}, {"tokens", {name}}};
  };
  if (tokenizer.add_bos()) add(tokens.bos_id);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (tokenizer.add_eos()) add(tokens.eos_id);
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", single}, {"special_tokens", special}};
}

std::string tokenizer_json(const Checkpoint& file, const TokenizerSpec& tokens) {
  if (tokens.kind != TokenizerKind::kBpe) throw refused(file, "a SentencePiece tokenizer");
  const PreTokenizerFamily& family = find_pretokenizer(tokens.pre);
  const auto tokenizer = Tokenizer::create(tokens);
  OrderedJson json = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  json["added_tokens"] = added_tokens(tokens);
  json["normalizer"] = family.normalize_nfc ? OrderedJson{{"type", "NFC"}} : OrderedJson(nullptr);
  json["pre_tokenizer"] = pre_tokenizer(file, family);
  json["post_processor"] = post_processor(tokens, *tokenizer);
  json["decoder"] = byte_level(true);
  json["model"] = bpe_model(tokens, family.ignore_merges);
  return json.dump() + "\n";
}

std::string tokenizer_config_json(const Checkpoint& file, const ModelConfig& c, const TokenizerSpec& tokens) {
  OrderedJson json = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                      {"model_max_length", c.context},
                      {"clean_up_tokenization_spaces", false}};
  const auto name = [&](const char* key, const std::optional<int32_t>& id) {
    if (id) json[key] = tokens.tokens[static_cast<size_t>(*id)];
  };
  name("bos_token", tokens.bos_id);
  name("eos_token", tokens.eos_id);
  name("pad_token", tokens.padding_id);
  if (const auto text = read_chat_template(file)) json["chat_template"] = *text;
  return json.dump(2) + "\n";
}

}  // namespace

std::map<std::string, std::string> hf_documents(const Checkpoint& file, const ModelConfig& config) {
  const TokenizerSpec tokens = read_tokenizer_spec(file);
  return {{"config.json", config_json(file, config, tokens)},
          {"generation_config.json", generation_json(tokens)},
          {"tokenizer.json", tokenizer_json(file, tokens)},
          {"tokenizer_config.json", tokenizer_config_json(file, config, tokens)}};
}

}  // namespace isobit
