#include "models/tokenizer_spec.h"

#include "base/error.h"

namespace isobit {
namespace {

std::optional<int32_t> token_id(const Metadata& meta, const std::string& name) {
  const auto id = meta.find_u32("tokenizer.ggml." + name);
  if (!id || *id == 0xffffffffU) return std::nullopt;  // -1 written as u32: the model has no such token
  return static_cast<int32_t>(*id);
}

}  // namespace

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
