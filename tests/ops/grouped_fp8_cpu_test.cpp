// The grouped FP8 GEMM on the CPU against the rule.
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/cpu/gemm_fp8.h"
#include "ops/cpu/simd_target.h"
#include "ops/grouped_fp8_problem.h"

namespace isobit::cpu {
namespace {

using isobit::testing::GroupedFp8Problem;
using isobit::testing::Random;

std::vector<uint8_t> run(ThreadPool& pool, const GroupedFp8Problem& p) {
  std::vector<uint8_t> out(p.out_bytes(), 0xcd);
  GroupedGemmFp8Args a = p.args();
  a.x = p.x.data();
  a.x_scale = p.x_scale.data();
  a.w = p.w.data();
  a.w_scale = p.w_scale.data();
  a.rows = p.rows.data();
  a.out = out.data();
  grouped_gemm_fp8({pool, simd_target("")}, a);
  return out;
}

TEST(CpuGroupedGemmFp8, FollowsTheRule) {
  Random r;
  ThreadPool pool(2);
  constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
  for (int i = 0; i < 12; i++) {
    SCOPED_TRACE(r.note());
    const std::vector<int32_t> counts = GroupedFp8Problem::draw_counts(r, 1 + r.below(7), 9);
    const GroupedFp8Problem p(r, counts, i % 2 == 0 ? 0 : 9 + r.below(4), 1 + r.below(200), 1 + r.below(300),
                              kTypes[i % 3]);
    if (p.m() > 0) p.check(r, run(pool, p), 60);
  }
}

TEST(CpuGroupedGemmFp8, CountsOutOfRangeStayInside) {
  Random r;
  ThreadPool pool(1);
  GroupedFp8Problem p(r, {2, 3, 1}, 4, 40, 130, DType::kBF16);
  p.rows = {-5, 100, 0};
  p.counts = {0, 4, 0};
  p.check(r, run(pool, p), 100);
}

}  // namespace
}  // namespace isobit::cpu
