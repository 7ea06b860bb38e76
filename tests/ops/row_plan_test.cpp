// How many CTAs share a row, and how many rows are taken at once.
#include "ops/cuda/row_plan.h"

#include <gtest/gtest.h>

namespace isobit::cuda {
namespace {

// About what an H200 holds with three CTAs an SM: one SM group is smaller than the others.
constexpr ClusterPlaces kPlaces = {0, 396, 198, 130, 99, 77, 64, 53, 46, 0, 0, 0, 0, 0, 0, 0, 21};

TEST(RowPlan, FewRowsAreSplitAndManyTakeACtaEach) {
  EXPECT_EQ(plan_rows(1, 151936, kPlaces).cluster, 16);
  EXPECT_EQ(plan_rows(32, 151936, kPlaces).cluster, 8);   // one round
  EXPECT_EQ(plan_rows(128, 151936, kPlaces).cluster, 3);  // one round
  EXPECT_EQ(plan_rows(2048, 129280, kPlaces, 131000).cluster, 1);
  EXPECT_EQ(plan_rows(2048, 129280, kPlaces, 65536).cluster, 2);
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
