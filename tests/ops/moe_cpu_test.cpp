// Experts' GEMMs in bf16 and f16 and the sum behind them on the CPU against rules N7 and N23.
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/cpu/moe.h"
#include "ops/cpu/simd_target.h"
#include "ops/moe_problem.h"

namespace isobit::cpu {
namespace {

using isobit::testing::CombineProblem;
using isobit::testing::GroupedProblem;
using isobit::testing::Random;

std::vector<uint8_t> run(ThreadPool& pool, const GroupedProblem& p) {
  std::vector<uint8_t> out(p.out_bytes(), 0xcd);
  GroupedGemmArgs a = p.args();
  a.x = p.x.data();
  a.w = p.w.data();
  a.rows = p.rows.data();
  a.out = out.data();
  grouped_gemm({pool, simd_target("")}, a);
  return out;
}

TEST(CpuGroupedGemm, FollowsTheRule) {
  Random r;
  ThreadPool pool(2);
  for (int i = 0; i < 12; i++) {
    SCOPED_TRACE(r.note());
    const std::vector<int32_t> counts = GroupedProblem::draw_counts(r, 1 + r.below(7), 9);
    const GroupedProblem p(r, counts, i % 2 == 0 ? 0 : 9 + r.below(4), 1 + r.below(200), 8 * (1 + r.below(40)),
                           i % 3 == 0 ? DType::kF16 : DType::kBF16, i % 4 < 2);
    if (p.m() > 0) p.check(r, run(pool, p), 60);
  }
  // Narrow: K in chunks.
  const GroupedProblem narrow(r, {2, 0, 1}, 0, 20, 2088, DType::kBF16, true);
  narrow.check(r, run(pool, narrow), 30);
}

TEST(CpuGroupedGemm, CountsOutOfRangeStayInside) {
  Random r;
  ThreadPool pool(1);
  GroupedProblem p(r, {2, 3, 1}, 4, 40, 136, DType::kBF16, false);
  p.rows = {-5, 100, 0};
  p.counts = {0, 4, 0};
  p.check(r, run(pool, p), 100);
}

TEST(CpuCombine, FollowsTheRule) {
  Random r;
  ThreadPool pool(2);
  for (int i = 0; i < 40; i++) {
    CombineProblem p = CombineProblem::draw(r);
    SCOPED_TRACE(r.note() + " " + p.text());
    const std::vector<uint8_t> want = p.expected();
    CombineArgs a = p.args;
    a.x = p.x.data();
    a.row = p.row.data();
    a.weight = p.weight.data();
    a.out = p.out.data();
    combine({pool, simd_target("")}, a);
    ASSERT_EQ(p.out == want, true);
  }
}

TEST(CpuMoe, ArgumentsAreChecked) {
  alignas(16) uint16_t x[64] = {};
  alignas(16) int32_t rows[2] = {};
  GroupedGemmArgs good;
  good.x = good.w = x;
  good.m = good.experts = good.n = 1;
  good.k = 8;
  good.rows = rows;
  good.out = x;
  EXPECT_NO_THROW(good.check());
  GroupedGemmArgs bad = good;
  bad.k = 12;
  EXPECT_THROW(bad.check(), Error);
  bad = good;
  bad.out_type = DType::kF16;
  EXPECT_THROW(bad.check(), Error);
  bad = good;
  bad.capacity = 2;
  EXPECT_THROW(bad.check(), Error);
  CombineArgs sum;
  float weight = 1.0f;
  sum.x = x;
  sum.rows = sum.n = sum.count = sum.top = 1;
  sum.row = rows;
  sum.weight = &weight;
  sum.out = &weight;
  EXPECT_NO_THROW(sum.check());
  sum.top = 0;
  EXPECT_THROW(sum.check(), Error);
  sum.top = 1;
  sum.add = true;
  sum.out_type = DType::kBF16;
  EXPECT_THROW(sum.check(), Error);
}

}  // namespace
}  // namespace isobit::cpu
