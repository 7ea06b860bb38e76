// How many CTAs share a row, and how many rows are taken at once.
#include "ops/cuda/row_plan.h"

#include <gtest/gtest.h>

namespace isobit::cuda {
namespace {

// What an H200 was seen to hold with two CTAs an SM: one SM group is smaller than the others.
constexpr ClusterPlaces kPlaces = {0, 264, 132, 86, 66, 51, 43, 35, 30, 0, 0, 0, 0, 0, 0, 0, 14};

TEST(RowPlan, FewRowsAreSplitAndManyTakeWholeRounds) {
  EXPECT_EQ(plan_rows(1, 151936, kPlaces).cluster, 16);
  EXPECT_EQ(plan_rows(32, 151936, kPlaces).cluster, 7);           // 30 clusters of 8 would take a second round
  EXPECT_EQ(plan_rows(128, 151936, kPlaces).cluster, 2);          // one round
  EXPECT_EQ(plan_rows(2048, 129280, kPlaces, 65536).cluster, 2);  // sixteen
  for (int64_t rows = 1; rows < 3000; rows++) {
    const RowPlan p = plan_rows(rows, 151936, kPlaces);
    EXPECT_GT(kPlaces[static_cast<size_t>(p.cluster)], 0) << rows;
    EXPECT_GE(p.clusters, 1) << rows;
    EXPECT_LE(p.clusters, kPlaces[static_cast<size_t>(p.cluster)]) << rows;
    EXPECT_LE(p.clusters, rows) << rows;
  }
}

TEST(RowPlan, ShortRowsLeaveNoCtaIdleAndLongOnesFit) {
  for (int64_t length = 1; length < 100000; length += 37) {
    const int c = plan_rows(1, length, kPlaces).cluster;
    EXPECT_TRUE(c == 1 || ((length + 3) / 4 + c - 1) / c >= kRowThreads) << length;
  }
  for (int64_t rows = 1; rows < 20000; rows = rows * 3 / 2 + 1) {
    EXPECT_EQ(plan_rows(rows, int64_t{1} << 20, kPlaces, 65536).cluster, 16) << rows;
    const int c = plan_rows(rows, 300000, kPlaces, 65536).cluster;
    EXPECT_LE((300000 / 4 + c - 1) / c * 4, 65536) << rows;
  }
}

}  // namespace
}  // namespace isobit::cuda
