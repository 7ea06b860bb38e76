#pragma once
// Speculation from a sequence's own text: what followed the last tokens where they stood before.
#include <cstdint>
#include <span>
#include <vector>

namespace isobit {

// At most `most` tokens that followed the most recent earlier place of the text's longest repeated ending, which has
// between kDraftShortest and kDraftLongest tokens; nothing where even the shortest is new.
std::vector<int32_t> lookup_draft(std::span<const int32_t> tokens, int32_t most);

// How many drafts a sequence is worth: more after a full success, fewer after a failure, and none for a while, ever
// longer, where nothing was right.
class DraftLength {
 public:
  int32_t next();  // of this step; counts a pause down
  // price: of a draft, in steps of the model. Drafts pause where none was right, and where those that were right, the
  // last rounds counting most, do not pay for all that were made.
  void report(int32_t drafted, int32_t accepted, double price = 0);

 private:
  static constexpr int32_t kFirst = 4, kMost = 64, kLongestPause = 64;
  static constexpr double kMemory = 0.75;  // of the rounds before
  int32_t length_ = kFirst, pause_ = 0, next_pause_ = 1;
  double gain_ = 0;  // steps
};

constexpr int32_t kDraftShortest = 2, kDraftLongest = 6;

}  // namespace isobit
