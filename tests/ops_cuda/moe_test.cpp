// Experts' GEMMs in bf16 and f16 and the sum behind them on the GPU: the rules' bytes for any routing, and rows that do
// not depend on each other.
#include "ops/cuda/moe.h"

#include <gtest/gtest.h>

#include "ops/cuda/device.h"
#include "ops/moe_problem.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

using testing::CombineProblem;
using testing::GroupedProblem;
using testing::Random;

constexpr int kSmCount = 132;

std::vector<uint8_t> run(const GroupedProblem& p, const cuda::GroupedGemmPlan* plan = nullptr) {
  const GpuArray<uint16_t> x(p.x), w(p.w);
  const GpuArray<int32_t> rows(p.rows);
  GpuArray<uint8_t> out(p.out_bytes());
  out.poison();
  GroupedGemmArgs a = p.args();
  a.x = x.data();
  a.w = w.data();
  a.rows = rows.data();
  a.out = out.data();
  a.check();
  GpuArray<uint32_t> counters(std::vector<uint32_t>(2, 0));
  cuda::KernelContext context;
  context.sm_count = kSmCount;
  if (p.n % 2 == 0) context.counters = counters.data();  // else tiles are dealt out evenly
  if (plan != nullptr) {
    cuda::launch_grouped_gemm_planned(a, *plan, context);
  } else {
    cuda::launch_grouped_gemm(a, context);
  }
  cuda::check(cudaDeviceSynchronize(), "grouped_gemm");
  EXPECT_TRUE(out.guards_intact()) << p.text();
  EXPECT_EQ(counters.get(), std::vector<uint32_t>(2, 0)) << p.text();
  return out.get();
}

TEST(GpuGroupedGemm, FollowsTheRule) {
  Random r;
  for (int i = 0; i < 40; i++) {
    SCOPED_TRACE(r.note());
    const int most = i % 3 == 0 ? 10 : 300;
    const std::vector<int32_t> counts = GroupedProblem::draw_counts(r, 1 + r.below(i % 5 == 0 ? 70 : 9), most);
    const GroupedProblem p(r, counts, i % 2 == 0 ? 0 : most + r.below(60), 1 + r.below(600), 8 * (1 + r.below(60)),
                           i % 3 == 0 ? DType::kF16 : DType::kBF16, i % 4 < 2);
    if (p.m() > 0) p.check(r, run(p), 100);
  }
}

TEST(GpuGroupedGemm, EveryTileGivesTheSameBits) {
  Random r;
  SCOPED_TRACE(r.note());
  for (const int64_t capacity : {0, 140}) {
    for (const auto& [n, k] : {std::pair{520, 640}, {1030, 2104}, {140, 2184}}) {  // the last is narrow
      const GroupedProblem p(r, {0, 1, 129, 0, 17, 64, 128, 3, 0, 140, 65}, capacity, n, k, DType::kBF16, n == 140);
      const std::vector<uint8_t> want = run(p);
      p.check(r, want, 200);
      for (const bool many : {false, true}) {
        if (!cuda::grouped_gemm_fits(p.args(), many)) continue;
        for (const int tile_m : {8, 24, 64, 128}) {
          if (tile_m > (many ? 128 : 64)) continue;
          for (const int cluster : {1, 2}) {
            if (tile_m % (8 * cluster) != 0) continue;
            for (const int sms : {kSmCount, 3}) {
              const auto plan = cuda::grouped_gemm_plan_for(p.args(), many, tile_m, cluster, sms);
              ASSERT_EQ(run(p, &plan) == want, true)
                  << "many " << many << ", " << tile_m << " rows, cluster " << cluster << " on " << sms << " SMs";
            }
          }
        }
      }
    }
  }
}

// An expert's row by itself, where the others have none.
TEST(GpuGroupedGemm, ARowDoesNotDependOnTheOthers) {
  Random r;
  SCOPED_TRACE(r.note());
  const GroupedProblem p(r, {40, 200, 5}, 0, 392, 904, DType::kBF16, false);
  const std::vector<uint8_t> all = run(p);
  const auto row_bytes = static_cast<size_t>(p.n) * 2;
  for (int e = 0; e < 3; e++) {
    for (int64_t i = p.first_row(e); i < p.rows[static_cast<size_t>(e) + 1]; i += 7) {
      GroupedProblem one = p;
      one.counts.assign(3, 0);
      one.counts[static_cast<size_t>(e)] = 1;
      one.rows = {0, e == 0, e <= 1, 1};
      one.x.assign(p.x.begin() + i * p.k, p.x.begin() + (i + 1) * p.k);
      const std::vector<uint8_t> got = run(one);
      ASSERT_EQ(std::memcmp(got.data(), &all[static_cast<size_t>(i) * row_bytes], row_bytes), 0) << "row " << i;
    }
  }
}

TEST(GpuCombine, FollowsTheRule) {
  Random r;
  for (int i = 0; i < 60; i++) {
    const CombineProblem p = CombineProblem::draw(r);
    SCOPED_TRACE(r.note() + " " + p.text());
    const GpuArray<uint8_t> x(p.x);
    const GpuArray<int32_t> row(p.row);
    const GpuArray<float> weight(p.weight);
    const GpuArray<uint8_t> out(p.out);
    CombineArgs a = p.args;
    a.x = x.data();
    a.row = row.data();
    a.weight = weight.data();
    a.out = out.data();
    a.check();
    cuda::launch_combine(a, {});
    cuda::check(cudaDeviceSynchronize(), "combine");
    ASSERT_TRUE(out.guards_intact());
    ASSERT_EQ(out.get() == p.expected(), true);
  }
}

}  // namespace
}  // namespace isobit
