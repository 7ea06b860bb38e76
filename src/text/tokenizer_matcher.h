#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace isobit {

// Finds tokens that stand in text as they are (special and user-defined ones): leftmost first, of those the longest,
// as HF's added tokens and SentencePiece's user-defined symbols. Const and safe to share between threads.
class TokenMatcher {
 public:
  struct Match {
    size_t begin;
    size_t end;
    int32_t id;
  };

  // Tokens with an empty text are left out.
  explicit TokenMatcher(std::vector<std::pair<std::string, int32_t>> tokens = {});

  // The longest token at text[pos], or end == begin.
  Match match_at(std::string_view text, size_t pos) const;
  // The next token at or after pos, or begin == end == text.size().
  Match find(std::string_view text, size_t pos) const;

 private:
  std::vector<std::pair<std::string, int32_t>> tokens_;  // sorted
  std::array<bool, 256> first_bytes_{};
};

}  // namespace isobit
