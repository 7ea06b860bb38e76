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

TEST(LookupTree, BranchesWherePlacesGoOnDifferently) {
  const auto tree = [](const Tokens& text, int32_t length, int32_t most, int32_t branches) {
    const Drafts d = lookup_tree(text, length, most, branches);
    return std::pair(d.tokens, d.parents);
  };
  const Tokens text{5, 1, 2, 7, 1, 2, 8, 1, 2};
  EXPECT_EQ(tree(text, 1, 4, 2), std::pair(Tokens{8, 7}, Tokens{-1, -1}));
  EXPECT_EQ(tree(text, 3, 6, 2), std::pair(Tokens{8, 1, 2, 7, 1, 2}, Tokens{-1, 0, 1, -1, 3, 4}));
  EXPECT_EQ(tree(text, 3, 4, 2), std::pair(Tokens{8, 1, 2, 7}, Tokens{-1, 0, 1, -1})) << "the first path goes first";
  EXPECT_EQ(tree(text, 3, 6, 1), std::pair(Tokens{8, 1, 2}, Tokens{-1, 0, 1}));
  const Tokens later{1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2};
  EXPECT_EQ(tree(later, 3, 8, 2), std::pair(Tokens{3, 5, 9, 4, 9}, Tokens{-1, 0, 1, 0, 3})) << "where they part";
  const Tokens three{1, 2, 6, 1, 2, 7, 1, 2, 8, 1, 2};
  EXPECT_EQ(tree(three, 1, 9, 2).first, (Tokens{8, 7})) << "the most recent first";
  EXPECT_EQ(tree(three, 1, 9, 3).first, (Tokens{8, 7, 6}));
  EXPECT_EQ(tree(three, 2, 4, 3), std::pair(Tokens{8, 1, 7, 6}, Tokens{-1, 0, -1, -1})) << "equal shares";
  EXPECT_TRUE(lookup_tree(Tokens{1, 2, 3}, 4, 8, 4).empty());
}

TEST(Drafts, Paths) {
  Drafts d = Drafts::chain({4, 5});
  EXPECT_TRUE(d.is_chain());
  d.add(6, 0);
  d.add(7, 2);
  EXPECT_FALSE(d.is_chain());
  EXPECT_EQ(d.first_path(), 2);
  EXPECT_EQ(d.path(3), (Tokens{0, 2, 3}));
  EXPECT_EQ(d.child(-1, 4), 0);
  EXPECT_EQ(d.child(0, 6), 2);
  EXPECT_EQ(d.child(0, 7), -1);
}

TEST(BranchWorth, PausesWhereOtherPathsDoNotPay) {
  BranchWorth worth;
  int32_t tried = 0;
  for (int i = 0; i < 200; i++) {
    if (!worth.next()) continue;
    tried++;
    worth.report(4, 0, 0.1);
  }
  EXPECT_LT(tried, 30);
  while (!worth.next()) {
  }
  for (int i = 0; i < 50; i++) {
    worth.report(4, i % 2, 0.1);
    EXPECT_TRUE(worth.next()) << "half a step won for every four tenths";
  }
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
