#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>
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
  std::vector<PageId> pages = {pool.allocate(), pool.allocate()};
  tree.share(tokens_of({1, 2, 3, 4, 5}), pages);
  EXPECT_EQ(tree.match(tokens_of({1, 2, 3, 4, 9, 9})).pages, pages);
  EXPECT_EQ(tree.match(tokens_of({1, 2, 3, 9})).pages, std::vector<PageId>{pages[0]});
  EXPECT_TRUE(tree.match(tokens_of({1, 9})).pages.empty());
  EXPECT_TRUE(tree.match(tokens_of({1})).pages.empty());
  EXPECT_EQ(pool.references(pages[0]), 1 + 1 + 2);
}

TEST(PrefixTree, GivesTheFirstPageOfEqualTokensForTheOthers) {
  PagePool pool(8);
  PrefixTree tree(pool, 2);
  const PageId first = pool.allocate(), second = pool.allocate();
  std::vector<PageId> held = {first}, equal = {second};
  tree.share(tokens_of({1, 2}), held);
  tree.share(tokens_of({1, 2}), equal);
  EXPECT_EQ(equal, held);
  EXPECT_EQ(tree.match(tokens_of({1, 2})).pages, held);
  EXPECT_EQ(pool.references(first), 1 + 2 + 1);
  EXPECT_EQ(pool.references(second), 0);
}

TEST(PrefixTree, EvictsLeastRecentlyUsedLeavesAndNeverPagesInUse) {
  PagePool pool(8);
  PrefixTree tree(pool, 1);
  const PageId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  std::vector<PageId> two = {a, b}, one = {c};
  tree.share(tokens_of({1, 2}), two);
  tree.share(tokens_of({3}), one);
  for (PageId p : {a, b}) pool.release(p);  // c stays in use by its sequence
  EXPECT_EQ(tree.evict(1), 1);              // b: the leaf of the older branch
  EXPECT_EQ(tree.match(tokens_of({1, 2})).pages, std::vector<PageId>{a});
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
      std::vector<PageId> pages = tree.match(tokens).pages;
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
      tree.share(tokens, pages);
      const std::vector<PageId> again = tree.match(tokens).pages;
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

// A prefix can be gone on from where the pages are left that its next token sees; those before them may have gone.
TEST(PrefixTree, WindowPagesOfAPrefixesEnd) {
  PagePool pool(8), window(8);
  PrefixTree tree(pool, 1, {&window, 2});
  std::vector<PageId> pages, windows;
  for (int i = 0; i < 5; i++) pages.push_back(pool.allocate()), windows.push_back(window.allocate());
  window.release(std::exchange(windows[0], -1));  // given up before it was shared
  const auto tokens = tokens_of({1, 2, 3, 4, 5});
  tree.share(tokens, pages, windows);
  EXPECT_EQ(tree.window_pages(), 4);
  for (const PageId p : pages) pool.release(p);
  const PrefixTree::Match whole = tree.match(tokens);
  EXPECT_EQ(whole.pages, pages);
  EXPECT_EQ(whole.window, (std::vector<PageId>{-1, -1, -1, windows[3], windows[4]}));
  EXPECT_EQ(tree.matched(std::span(tokens).first(3)), 3);
  EXPECT_EQ(tree.matched(std::span(tokens).first(2)), 0) << "token 0's page is needed there, and gone";

  for (int i : {1, 2, 4}) window.release(windows[static_cast<size_t>(i)]);
  EXPECT_EQ(tree.evict_window(1), 1) << "of the prefix's pages the first";
  EXPECT_EQ(tree.matched(std::span(tokens).first(3)), 0);
  EXPECT_EQ(tree.matched(std::span(tokens).first(4)), 4);
  EXPECT_EQ(tree.evict_window(8), 1) << "the match holds the last two";
  window.release(windows[3]);
  for (const PageId p : whole.window) p < 0 ? void() : window.release(p);
  EXPECT_EQ(tree.matched(tokens), 5);
  EXPECT_EQ(tree.evict_window(8), 2);
  EXPECT_EQ(tree.matched(tokens), 0);
  EXPECT_EQ(tree.window_pages(), 0);
  EXPECT_EQ(window.free(), 8);

  // Who computes it again gives the tree its pages.
  std::vector<PageId> fresh, windows_again;
  for (int i = 0; i < 3; i++) fresh.push_back(pool.allocate()), windows_again.push_back(window.allocate());
  tree.share(tokens, fresh, windows_again);
  EXPECT_EQ(fresh, (std::vector<PageId>(pages.begin(), pages.begin() + 3)));
  EXPECT_EQ(tree.matched(tokens), 3);
  for (const PageId p : fresh) pool.release(p);
  for (const PageId p : windows_again) window.release(p);
  for (const PageId p : whole.pages) pool.release(p);
  tree.clear();
  EXPECT_EQ(pool.free(), 8);
  EXPECT_EQ(window.free(), 8);
}

}  // namespace
}  // namespace isobit
