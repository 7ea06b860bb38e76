#include "engine/draft.h"

#include <gtest/gtest.h>

namespace isobit::test {
namespace {

using Tokens = std::vector<int32_t>;

TEST(LookupDraft, TakesWhatFollowedTheLastEqualEnding) {
  EXPECT_EQ(lookup_draft(Tokens{1, 2, 3, 4, 9, 1, 2}, 2), (Tokens{3, 4}));
  EXPECT_EQ(lookup_draft(Tokens{1, 2, 3, 4, 9, 1, 2}, 9), (Tokens{3, 4, 9, 1, 2}));
  EXPECT_EQ(lookup_draft(Tokens{5, 1, 2, 7, 1, 2, 8, 1, 2}, 1), (Tokens{8})) << "of equal length the most recent";
  EXPECT_EQ(lookup_draft(Tokens{5, 1, 2, 7, 1, 2, 8, 5, 1, 2}, 1), (Tokens{7})) << "the longest before the most recent";
  EXPECT_EQ(lookup_draft(Tokens{4, 4, 4, 4}, 3), (Tokens{4}));
}

TEST(LookupDraft, GivesNothingWhereNothingRepeats) {
  EXPECT_TRUE(lookup_draft(Tokens{}, 4).empty());
  EXPECT_TRUE(lookup_draft(Tokens{1}, 4).empty());
  EXPECT_TRUE(lookup_draft(Tokens{1, 2, 3, 4}, 4).empty());
  EXPECT_TRUE(lookup_draft(Tokens{1, 7, 2, 7}, 4).empty()) << "one token is too little to go by";
  EXPECT_TRUE(lookup_draft(Tokens{1, 2, 3, 1, 2}, 0).empty());
}

TEST(DraftLength, GrowsShrinksAndPauses) {
  DraftLength length;
  const int32_t first = length.next();
  length.report(first, first);
  EXPECT_EQ(length.next(), 2 * first);
  length.report(2 * first, 3);
  EXPECT_EQ(length.next(), 4);
  int32_t steps = 0, pauses = 0;
  for (int i = 0; i < 6; i++) {
    for (; length.next() == 0; steps++) pauses++;
    length.report(4, 0);
  }
  EXPECT_EQ(pauses, 1 + 2 + 4 + 8 + 16) << "twice as long each time";
  for (int i = 0; i < 32; i++) EXPECT_EQ(length.next(), 0);
  const int32_t again = length.next();
  EXPECT_GT(again, 0);
  length.report(again, 1);
  EXPECT_GT(length.next(), 0) << "one success ends the pauses";
}

}  // namespace
}  // namespace isobit::test
