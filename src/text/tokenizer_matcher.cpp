#include "text/tokenizer_matcher.h"

#include <algorithm>

namespace isobit {

TokenMatcher::TokenMatcher(std::vector<std::pair<std::string, int32_t>> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const auto& token) { return token.first.empty(); });
  std::sort(tokens_.begin(), tokens_.end());
  for (const auto& token : tokens_) first_bytes_[static_cast<unsigned char>(token.first[0])] = true;
}

// Narrows the sorted tokens to those that share ever more of the text.
TokenMatcher::Match TokenMatcher::match_at(std::string_view text, size_t pos) const {
  Match best{pos, pos, -1};
  if (!first_bytes_[static_cast<unsigned char>(text[pos])]) return best;
  auto low = tokens_.begin();
  auto high = tokens_.end();
  for (size_t depth = 0; pos + depth < text.size() && low != high; depth++) {
    const auto byte = static_cast<unsigned char>(text[pos + depth]);
    // Tokens of just this depth sort before the longer ones; the longest that ended here is recorded below.
    const auto at = [depth](const auto& token) {
      return token.first.size() > depth ? static_cast<int>(static_cast<unsigned char>(token.first[depth])) : -1;
    };
    low = std::partition_point(low, high, [&](const auto& token) { return at(token) < byte; });
    high = std::partition_point(low, high, [&](const auto& token) { return at(token) <= byte; });
    if (low != high && low->first.size() == depth + 1) best = {pos, pos + depth + 1, low->second};
  }
  return best;
}

TokenMatcher::Match TokenMatcher::find(std::string_view text, size_t pos) const {
  for (; !tokens_.empty() && pos < text.size(); pos++) {
    const Match match = match_at(text, pos);
    if (match.end > match.begin) return match;
  }
  return {text.size(), text.size(), -1};
}

}  // namespace isobit
