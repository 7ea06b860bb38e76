#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "base/error.h"
#include "cache/page_pool.h"
#include "cache/prefix_tree.h"

namespace isobit {
namespace {

std::vector<int32_t> tokens_of(std::initializer_list<int32_t> t) { return t; }

TEST(PagePool, GivesEveryPageOnceAndTakesItBackAtTheLastRelease) {
  PagePool pool(3);
  const PageId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  EXPECT_EQ(pool.allocate(), -1);
  EXPECT_NE(a, b);
  EXPECT_NE(b, c);
  EXPECT_NE(a, c);
  pool.retain(b);
  pool.release(b);
  EXPECT_EQ(pool.free(), 0);
  pool.release(b);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_EQ(pool.allocate(), b);
}

TEST(PagePool, RefusesPagesThatAreNotInUse) {
  PagePool pool(2);
  EXPECT_THROW(pool.release(0), Error);
  EXPECT_THROW(pool.retain(1), Error);
  EXPECT_THROW(pool.release(2), Error);
  EXPECT_THROW(pool.release(-1), Error);
}

TEST(PrefixTree, MatchesWholePagesOfTheLongestPrefix) {
  PagePool pool(8);
  PrefixTree tree(pool, 2);
  const std::vector<PageId> pages = {pool.allocate(), pool.allocate()};
  tree.insert(tokens_of({1, 2, 3, 4, 5}), pages);
  EXPECT_EQ(tree.match(tokens_of({1, 2, 3, 4, 9, 9})), pages);
  EXPECT_EQ(tree.match(tokens_of({1, 2, 3, 9})), std::vector<PageId>{pages[0]});
  EXPECT_TRUE(tree.match(tokens_of({1, 9})).empty());
  EXPECT_TRUE(tree.match(tokens_of({1})).empty());
  EXPECT_EQ(pool.references(pages[0]), 1 + 1 + 2);
}

TEST(PrefixTree, KeepsTheFirstPageOfEqualTokens) {
  PagePool pool(8);
  PrefixTree tree(pool, 2);
  const PageId first = pool.allocate(), second = pool.allocate();
  tree.insert(tokens_of({1, 2}), std::vector<PageId>{first});
  tree.insert(tokens_of({1, 2}), std::vector<PageId>{second});
  EXPECT_EQ(tree.match(tokens_of({1, 2})), std::vector<PageId>{first});
  EXPECT_EQ(pool.references(second), 1);
}

TEST(PrefixTree, EvictsLeastRecentlyUsedLeavesAndNeverPagesInUse) {
  PagePool pool(8);
  PrefixTree tree(pool, 1);
  const PageId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  tree.insert(tokens_of({1, 2}), std::vector<PageId>{a, b});
  tree.insert(tokens_of({3}), std::vector<PageId>{c});
  for (PageId p : {a, b}) pool.release(p);  // c stays in use by its sequence
  EXPECT_EQ(tree.evict(1), 1);              // b: the leaf of the older branch
  EXPECT_EQ(tree.match(tokens_of({1, 2})), std::vector<PageId>{a});
  pool.release(a);
  EXPECT_EQ(tree.evict(8), 1);  // a, but not c
  EXPECT_EQ(tree.pages(), 1);
  EXPECT_EQ(pool.references(c), 2);
}

// Random sequences against a plain map from prefix to page, with evictions: nothing is lost, nothing invented, nothing
// leaks.
TEST(PrefixTree, AgreesWithAPlainMapUnderRandomUse) {
  const auto seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  constexpr int32_t kPages = 64, kPageSize = 3;
  PagePool pool(kPages);
  {
    PrefixTree tree(pool, kPageSize);
    std::map<std::vector<int32_t>, PageId> known;
    for (int round = 0; round < 4000; round++) {
      std::vector<int32_t> tokens(rng() % 20);
      for (auto& t : tokens) t = static_cast<int32_t>(rng() % 2);
      std::vector<PageId> pages = tree.match(tokens);
      for (size_t i = 0; i < pages.size(); i++) {
        const std::vector<int32_t> prefix(tokens.begin(), tokens.begin() + static_cast<long>((i + 1) * kPageSize));
        ASSERT_EQ(known.at(prefix), pages[i]);
      }
      const size_t whole = tokens.size() / kPageSize;
      while (pages.size() < whole) {
        PageId p = pool.allocate();
        if (p < 0) {
          ASSERT_GT(tree.evict(1 + static_cast<int32_t>(rng() % 4)), 0);
          p = pool.allocate();
        }
        pages.push_back(p);
      }
      tree.insert(tokens, pages);
      const std::vector<PageId> again = tree.match(tokens);
      ASSERT_EQ(again, pages);
      for (size_t i = 0; i < pages.size(); i++) {
        known[std::vector<int32_t>(tokens.begin(), tokens.begin() + static_cast<long>((i + 1) * kPageSize))] = pages[i];
      }
      for (PageId p : pages) pool.release(p);
      for (PageId p : again) pool.release(p);
      ASSERT_EQ(tree.pages() + pool.free(), kPages);
    }
    tree.clear();
    EXPECT_EQ(tree.pages(), 0);
  }
  EXPECT_EQ(pool.free(), kPages);
}

}  // namespace
}  // namespace isobit
