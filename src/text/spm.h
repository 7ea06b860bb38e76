#pragma once
// SentencePiece's BPE model: neighbours are joined while their concatenation is a piece, highest score first.
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text/tokenizer_matcher.h"

namespace isobit {

enum class TokenType : int32_t;

inline constexpr std::string_view kSpmSpace = "\xE2\x96\x81";  // U+2581, a space inside a piece

std::string escape_spaces(std::string_view text);    // " " becomes U+2581
std::string unescape_spaces(std::string_view text);  // U+2581 becomes " "

// Const and safe to share between threads.
class SpmMerger {
 public:
  // names, types, scores: one each per token; names must outlive this. unknown_id: -1 for none.
  // Throws kBadFile for a NaN score, a malformed byte token, some but not all of the 256 byte tokens, or neither byte
  // tokens nor an unknown token.
  SpmMerger(std::span<const std::string> names, std::span<const TokenType> types, std::span<const float> scores,
            int32_t unknown_id);

  // Appends the tokens of text, which is well-formed UTF-8 with its spaces escaped. User-defined tokens match first
  // (leftmost, longest) and never merge. A character that is no piece becomes its byte tokens; without byte tokens a
  // run of such characters becomes one unknown token. O(n log n).
  void encode(std::string_view text, std::vector<int32_t>& out) const;

 private:
  class Run;

  int32_t find(std::string_view piece) const;
  void note_spaces(std::string_view piece);

  std::span<const TokenType> types_;
  std::span<const float> scores_;
  int32_t unknown_id_;
  bool has_bytes_ = false;
  bool has_unused_ = false;
  size_t longest_piece_ = 0;
  std::array<int32_t, 256> byte_ids_{};
  std::unordered_set<char32_t> before_space_;  // characters, U+2581 among them, that a piece has before a U+2581
  std::unordered_map<std::string_view, int32_t> pieces_;  // what merges may give: normal, user-defined, unused
  TokenMatcher user_defined_;
};

// The byte of a token named "<0xHH>", or -1.
int parse_byte_token(std::string_view name);

}  // namespace isobit
