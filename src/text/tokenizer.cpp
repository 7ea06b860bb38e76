#include "text/tokenizer.h"

#include <array>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "text/bpe.h"
#include "text/detokenizer.h"
#include "text/pretokenizer.h"
#include "text/spm.h"
#include "text/unicode.h"

namespace isobit {

namespace {

// Tokens that end a turn or a text in the published models; files do not always give their ids or mark them control.
constexpr std::array<std::string_view, 14> kEndNames = {
    "<|eot_id|>", "<|eom_id|>",      "<|im_end|>", "<|end|>",    "<end_of_turn>",      "<|endoftext|>", "<EOT>",
    "_<EOT>",     "<|end_of_text|>", "<|eom|>",    "<|return|>", "<end_of_utterance>", "<|call|>",      "[EOT]"};

void check_special(std::string_view key, const std::optional<int32_t>& id, size_t vocab) {
  if (!id || (*id >= 0 && static_cast<size_t>(*id) < vocab)) return;
  throw fail(ErrorCode::kBadFile, "tokenizer.ggml.{} = {}: the vocabulary has the ids 0 to {}", key, *id,
             static_cast<int64_t>(vocab) - 1);
}

template <typename T>
void check_length(std::string_view key, const std::vector<T>& values, size_t vocab) {
  if (values.size() == vocab) return;
  throw fail(ErrorCode::kBadFile, "tokenizer.ggml.{} has {} entries for {} tokens", key, values.size(), vocab);
}

// SentencePiece's remove_extra_whitespaces.
std::string collapse_spaces(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  }
  while (out.ends_with(' ') || out.ends_with(kSpmSpace)) out.resize(out.size() - (out.back() == ' ' ? 1 : 3));
  return out;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::create(TokenizerSpec spec) {
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(spec)));
}

Tokenizer::~Tokenizer() = default;

Tokenizer::Tokenizer(TokenizerSpec spec) : spec_(std::move(spec)) {
  if (spec_.types.empty()) spec_.types.assign(spec_.tokens.size(), TokenType::kNormal);
  check_spec();
  build_lookup();
  resolve_types();
  build_bytes();
  if (spec_.kind == TokenizerKind::kBpe) {
    build_bpe();
  } else {
    build_spm();
  }
  add_bos_ = add_bos_ && spec_.bos_id.has_value();
  add_eos_ = spec_.add_eos.value_or(false) && spec_.eos_id.has_value();
}

void Tokenizer::check_spec() const {
  const size_t vocab = spec_.tokens.size();
  if (vocab == 0) throw fail(ErrorCode::kBadFile, "tokenizer.ggml.tokens is empty: the file has no vocabulary");
  if (vocab > static_cast<size_t>(INT32_MAX)) {
    throw fail(ErrorCode::kBadFile, "tokenizer.ggml.tokens has {} entries; the limit is {}", vocab, INT32_MAX);
  }
  check_length("token_type", spec_.types, vocab);
  if (spec_.kind == TokenizerKind::kSpm && spec_.merges.empty()) check_length("scores", spec_.scores, vocab);
  for (size_t id = 0; id < vocab; id++) {
    const auto type = static_cast<int32_t>(spec_.types[id]);
    if (type >= 0 && type <= static_cast<int32_t>(TokenType::kByte)) continue;
    throw fail(ErrorCode::kBadFile, "tokenizer.ggml.token_type[{}] = {} (token '{}'): known are 0 to 6", id, type,
               spec_.tokens[id]);
  }
  check_special("bos_token_id", spec_.bos_id, vocab);
  check_special("eos_token_id", spec_.eos_id, vocab);
  check_special("unknown_token_id", spec_.unknown_id, vocab);
  check_special("padding_token_id", spec_.padding_id, vocab);
  check_special("eot_token_id", spec_.eot_id, vocab);
  check_special("eom_token_id", spec_.eom_id, vocab);
}

void Tokenizer::build_lookup() {
  ids_.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); id++) {
    const std::string& name = spec_.tokens[id];
    if (name.empty()) continue;
    const auto [at, added] = ids_.emplace(name, static_cast<int32_t>(id));
    if (!added) {
      throw fail(ErrorCode::kBadFile, "tokenizer.ggml.tokens: '{}' is token {} and token {}", name, at->second, id);
    }
  }
}

void Tokenizer::resolve_types() {
  eog_.assign(spec_.tokens.size(), false);
  for (const auto& id : {spec_.eos_id, spec_.eot_id, spec_.eom_id}) {
    if (id) eog_[*id] = true;
  }
  for (const int32_t id : spec_.end_ids) {
    check_special("eos_token_id", id, spec_.tokens.size());
    eog_[id] = true;
  }
  for (const std::string_view name : kEndNames) {
    const auto id = find(name);
    if (!id) continue;
    eog_[*id] = true;
    spec_.types[*id] = TokenType::kControl;
  }
}

std::string Tokenizer::bytes_of(int32_t id) const {
  const std::string& name = spec_.tokens[id];
  switch (spec_.types[id]) {
    case TokenType::kControl:
    case TokenType::kUnknown:
      return "";
    case TokenType::kByte: {
      const int byte = parse_byte_token(name);
      if (byte >= 0) return std::string(1, static_cast<char>(static_cast<unsigned char>(byte)));
      break;
    }
    case TokenType::kUserDefined:
      return spec_.kind == TokenizerKind::kSpm ? unescape_spaces(name) : name;
    default:
      break;
  }
  return spec_.kind == TokenizerKind::kSpm ? unescape_spaces(name) : decode_byte_level(name);
}

void Tokenizer::build_bytes() {
  bytes_end_.reserve(spec_.tokens.size() + 1);
  bytes_end_.push_back(0);
  for (int32_t id = 0; id < vocab_size(); id++) {
    bytes_ += bytes_of(id);
    bytes_end_.push_back(bytes_.size());
  }
  std::vector<std::pair<std::string, int32_t>> user, special;
  for (int32_t id = 0; id < vocab_size(); id++) {
    const TokenType type = spec_.types[id];
    const bool user_defined =
        type == TokenType::kUserDefined && (spec_.kind == TokenizerKind::kBpe || !spec_.merges.empty());
    if (user_defined) user.emplace_back(spec_.tokens[id], id);
    if (user_defined || is_control(id)) special.emplace_back(spec_.tokens[id], id);
  }
  in_user_text_ = TokenMatcher(std::move(user));
  in_special_text_ = TokenMatcher(std::move(special));
}

void Tokenizer::build_bpe() {
  const PreTokenizerFamily& family = find_pretokenizer(spec_.pre);
  normalize_nfc_ = spec_.normalize_nfc.value_or(family.normalize_nfc);
  add_bos_ = spec_.add_bos.value_or(family.add_bos);
  pretokenizer_ = std::make_unique<PreTokenizer>(family);
  std::vector<bool> usable = spec_.mergeable;
  if (usable.empty()) {
    for (const TokenType type : spec_.types) {
      usable.push_back(type != TokenType::kControl && type != TokenType::kUserDefined);
    }
  }
  bpe_ = std::make_unique<BpeMerger>(
      ids_, usable, spec_.merges,
      BpeMerger::Options{.ignore_merges = spec_.ignore_merges.value_or(family.ignore_merges)});
}

void Tokenizer::build_spm() {
  add_bos_ = spec_.add_bos.value_or(true);
  const bool prefixed = spec_.add_space_prefix.value_or(true);
  space_prefix_ = spec_.space_prefix.value_or(prefixed ? SpacePrefix::kEachPart : SpacePrefix::kNone);
  if (!spec_.merges.empty()) {
    bpe_ = std::make_unique<BpeMerger>(
        ids_, spec_.mergeable, spec_.merges,
        BpeMerger::Options{
            .characters = true, .unknown_id = spec_.unknown_id.value_or(-1), .fuse_unknown = spec_.fuse_unknown});
    return;
  }
  spm_ = std::make_unique<SpmMerger>(spec_.tokens, spec_.types, spec_.scores, spec_.unknown_id.value_or(-1));
}

void Tokenizer::check_id(int32_t id) const {
  require(id >= 0 && id < vocab_size(), "token id {} is not in the vocabulary, which has 0 to {}", id,
          vocab_size() - 1);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  check_id(id);
  return std::string_view(bytes_).substr(bytes_end_[id], bytes_end_[id + 1] - bytes_end_[id]);
}

const std::string& Tokenizer::token_name(int32_t id) const {
  check_id(id);
  return spec_.tokens[id];
}

std::optional<int32_t> Tokenizer::find(std::string_view name) const {
  const auto found = ids_.find(name);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::is_control(int32_t id) const {
  check_id(id);
  return spec_.types[id] == TokenType::kControl || spec_.types[id] == TokenType::kUnknown;
}

bool Tokenizer::is_eog(int32_t id) const {
  check_id(id);
  return eog_[id];
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::string repaired;
  if (valid_utf8_prefix(text) != text.size()) {
    repaired = sanitize_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> out;
  if (options.add_special && add_bos_) out.push_back(*spec_.bos_id);
  const TokenMatcher& matcher = options.parse_special ? in_special_text_ : in_user_text_;
  int32_t before = -1;
  for (size_t pos = 0; pos < text.size();) {
    const auto token = matcher.find(text, pos);
    const std::string_view between = stripped(text.substr(pos, token.begin - pos), before, token.id);
    if (!between.empty() && spec_.kind == TokenizerKind::kBpe) encode_bpe(between, out);
    if (!between.empty() && spec_.kind == TokenizerKind::kSpm) encode_spm(between, between.data() == text.data(), out);
    if (token.end > token.begin) out.push_back(token.id);
    pos = token.end;
    before = token.id;
  }
  if (options.add_special && add_eos_) out.push_back(*spec_.eos_id);
  return out;
}

// What lies between two tokens (-1: an end of the text), without the white space that they swallow.
std::string_view Tokenizer::stripped(std::string_view between, int32_t before, int32_t after) const {
  if (before >= 0 && !spec_.strips_right.empty() && spec_.strips_right[before]) between = trim_left(between);
  if (after >= 0 && !spec_.strips_left.empty() && spec_.strips_left[after]) between = trim_right(between);
  return between;
}

void Tokenizer::encode_bpe(std::string_view text, std::vector<int32_t>& out) const {
  std::string normalized;
  if (normalize_nfc_ && !surely_nfc(text)) {
    normalized = nfc(text);
    text = normalized;
  }
  std::vector<size_t> ends;
  pretokenizer_->split(text, ends);
  BpeMerger::Scratch scratch;
  size_t begin = 0;
  for (const size_t end : ends) {
    bpe_->encode(text.substr(begin, end - begin), scratch, out);
    begin = end;
  }
}

void Tokenizer::encode_spm(std::string_view text, bool first, std::vector<int32_t>& out) const {
  std::string collapsed;
  if (spec_.remove_extra_whitespaces) {
    collapsed = collapse_spaces(text);
    text = collapsed;
    if (text.empty()) return;
  }
  std::string escaped = escape_spaces(text);
  const bool has_one = escaped.starts_with(kSpmSpace);
  const bool wanted = space_prefix_ == SpacePrefix::kEachPart ||
                      (space_prefix_ == SpacePrefix::kEachPartWithout && !has_one) ||
                      (space_prefix_ == SpacePrefix::kFirstPartWithout && !has_one && first);
  if (wanted) escaped.insert(0, kSpmSpace);
  if (spm_ != nullptr) {
    spm_->encode(escaped, out);
  } else {
    merge_spm(escaped, out);
  }
}

void Tokenizer::merge_spm(std::string_view escaped, std::vector<int32_t>& out) const {
  BpeMerger::Scratch scratch;
  while (!escaped.empty()) {
    const size_t next = spec_.split_before_spaces ? escaped.find(kSpmSpace, 1) : std::string_view::npos;
    const std::string_view piece = escaped.substr(0, next);
    bpe_->encode(piece, scratch, out);
    escaped.remove_prefix(piece.size());
  }
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  Detokenizer detokenizer(*this);
  std::string text;
  for (const int32_t id : ids) text += detokenizer.push(id);
  return text + detokenizer.flush();
}

}  // namespace isobit
