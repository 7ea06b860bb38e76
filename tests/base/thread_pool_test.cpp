#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace isobit {

TEST(ThreadPool, EveryIndexExactlyOnceWithAThreadInRange) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int64_t count : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      std::atomic<bool> in_range{true};
      pool.parallel_for(count, [&](int thread, int64_t i) {
        hits[static_cast<size_t>(i)]++;
        if (thread < 0 || thread >= threads) in_range = false;
      });
      EXPECT_TRUE(in_range);
      for (auto& h : hits) EXPECT_EQ(h.load(), 1);
    }
  }
}

TEST(ThreadPool, ManyShortLoopsInARow) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 5000; round++) pool.parallel_for(4, [&](int, int64_t i) { sum += i; });
  EXPECT_EQ(sum.load(), 5000 * 6);
}

TEST(ThreadPool, FirstExceptionReachesTheCallerAndThePoolLivesOn) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.parallel_for(100,
                                 [](int, int64_t i) {
                                   if (i == 7) throw std::runtime_error("seven");
                                 }),
               std::runtime_error);
  std::atomic<int> n{0};
  pool.parallel_for(10, [&](int, int64_t) { n++; });
  EXPECT_EQ(n.load(), 10);
}

}  // namespace isobit
