#include "engine/draft.h"

#include <algorithm>

namespace isobit {

std::vector<int32_t> lookup_draft(std::span<const int32_t> tokens, int32_t most) {
  const auto size = static_cast<int32_t>(tokens.size());
  int32_t best_length = 0, best_end = 0;  // the place found: tokens[best_end - best_length, best_end)
  for (int32_t end = size - 1; end >= kDraftShortest && best_length < kDraftLongest; end--) {
    int32_t length = 0;
    while (length < std::min(end, kDraftLongest) &&
           tokens[static_cast<size_t>(end - 1 - length)] == tokens[static_cast<size_t>(size - 1 - length)])
      length++;
    if (length <= best_length) continue;
    best_length = length;
    best_end = end;
  }
  if (best_length < kDraftShortest || most <= 0) return {};
  const auto count = static_cast<size_t>(std::min(most, size - best_end));
  const auto found = tokens.subspan(static_cast<size_t>(best_end), count);
  return {found.begin(), found.end()};
}

int32_t DraftLength::next() {
  if (pause_ == 0) return length_;
  pause_--;
  return 0;
}

void DraftLength::report(int32_t drafted, int32_t accepted, double price) {
  gain_ = kMemory * gain_ + accepted - price * drafted;
  if (accepted == 0 || gain_ < 0) {
    gain_ = 0;
    pause_ = next_pause_;
    next_pause_ = std::min(2 * next_pause_, kLongestPause);
    length_ = kFirst;
    return;
  }
  next_pause_ = 1;
  length_ = accepted == drafted ? std::min(2 * length_, kMost) : std::max(accepted + 1, kFirst / 2);
}

}  // namespace isobit
