// How many CTAs share a row of logits.
#include "ops/cuda/sample_plan.h"

#include <gtest/gtest.h>

namespace isobit::cuda {
namespace {

constexpr int kSms = 132;

TEST(SamplePlan, FewRowsAreSplitAndManyFillTheGpuOnce) {
  EXPECT_EQ(sample_cluster(1, 151936, kSms), 16);
  EXPECT_EQ(sample_cluster(32, 151936, kSms), 5);
  EXPECT_EQ(sample_cluster(128, 151936, kSms), 2);
  EXPECT_EQ(sample_cluster(264, 151936, kSms), 1);
  for (int64_t rows = 1; rows < 2000; rows++) {
    const int size = sample_cluster(rows, 151936, kSms);
    EXPECT_TRUE(size == 1 || rows * size <= 2 * kSms) << rows;
    EXPECT_TRUE(size <= 4 || rows * size <= kSms * 5 / 4) << rows;
    EXPECT_LE(size, kMaxSampleCluster);
  }
}

TEST(SamplePlan, ShortRowsLeaveNoCtaIdle) {
  for (int64_t vocab = 1; vocab < 100000; vocab += 37) {
    const int size = sample_cluster(1, vocab, kSms);
    EXPECT_TRUE(size == 1 || (vocab + 3) / 4 >= int64_t{size} * kSampleThreads) << vocab;
  }
}

}  // namespace
}  // namespace isobit::cuda
