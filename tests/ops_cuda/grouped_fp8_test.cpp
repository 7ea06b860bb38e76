// The grouped FP8 GEMM on the GPU: the rule's bytes for any routing, and rows that do not depend on each other.
#include <gtest/gtest.h>

#include <memory>

#include "ops/cuda/device.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops/grouped_fp8_problem.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

using testing::GroupedFp8Problem;
using testing::Random;

constexpr int kSmCount = 132;

std::vector<uint8_t> run(const GroupedFp8Problem& p, const cuda::GemmFp8Plan* plan = nullptr) {
  const GpuArray<uint8_t> x(p.x), w(p.w);
  const GpuArray<float> x_scale(p.x_scale), w_scale(p.w_scale);
  const GpuArray<int32_t> rows(p.rows);
  GpuArray<uint8_t> out(p.out_bytes());
  out.poison();
  GroupedGemmFp8Args a = p.args();
  a.x = x.data();
  a.x_scale = x_scale.data();
  a.w = w.data();
  a.w_scale = w_scale.data();
  a.rows = rows.data();
  a.out = out.data();
  a.check();
  GpuArray<uint32_t> counters(std::vector<uint32_t>(2, 0));
  cuda::KernelContext context;
  context.sm_count = kSmCount;
  if (p.n % 2 == 0) context.counters = counters.data();  // else tiles are dealt out evenly
  if (plan != nullptr) {
    launch_grouped_gemm_fp8_planned(a, *plan, context);
  } else {
    launch_grouped_gemm_fp8(a, context);
  }
  cuda::check(cudaDeviceSynchronize(), "grouped_gemm_fp8");
  EXPECT_TRUE(out.guards_intact()) << p.text();
  EXPECT_EQ(counters.get(), std::vector<uint32_t>(2, 0)) << p.text();
  return out.get();
}

TEST(GpuGroupedGemmFp8, FollowsTheRule) {
  Random r;
  constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
  for (int i = 0; i < 40; i++) {
    SCOPED_TRACE(r.note());
    const int most = i % 3 == 0 ? 10 : 300;
    const std::vector<int32_t> counts = GroupedFp8Problem::draw_counts(r, 1 + r.below(i % 5 == 0 ? 70 : 9), most);
    const GroupedFp8Problem p(r, counts, i % 2 == 0 ? 0 : most + r.below(60), 1 + r.below(600), 1 + r.below(500),
                              kTypes[i % 3]);
    if (p.m() > 0) p.check(r, run(p), 150);
  }
}

TEST(GpuGroupedGemmFp8, EveryTileGivesTheSameBits) {
  Random r;
  SCOPED_TRACE(r.note());
  for (const int64_t capacity : {0, 140}) {
    const GroupedFp8Problem p(r, {0, 1, 129, 0, 17, 64, 128, 3, 0, 140, 65}, capacity, 520, 640, DType::kBF16);
    const std::vector<uint8_t> want = run(p);
    p.check(r, want, 300);
    for (const int i : {cuda::kGroupedFewTile, cuda::kGroupedManyTile}) {
      for (const int tile_m : {8, 24, 64, 128}) {
        if (tile_m > 64 * cuda::kGemmFp8Tiles[i].warpgroups) continue;
        for (const int cluster : {1, 2}) {
          if (tile_m % (8 * cluster) != 0) continue;
          for (const int sms : {kSmCount, 3}) {
            const auto plan = cuda::grouped_gemm_fp8_plan_for({p.m(), p.n, p.k}, p.experts(), i, tile_m, cluster, sms);
            ASSERT_EQ(run(p, &plan) == want, true)
                << "tile " << i << " of " << tile_m << " rows, cluster " << cluster << " on " << sms << " SMs";
          }
        }
      }
    }
  }
}

// The same rows among others, in another order of experts' loads.
TEST(GpuGroupedGemmFp8, ARowDoesNotDependOnTheOthers) {
  Random r;
  SCOPED_TRACE(r.note());
  const GroupedFp8Problem p(r, {40, 200, 5}, 0, 392, 900, DType::kBF16);
  const std::vector<uint8_t> all = run(p);
  const auto row_bytes = static_cast<size_t>(p.n) * 2, x_row = static_cast<size_t>(fp8_row_bytes(p.k));
  for (int e = 0; e < 3; e++) {
    for (int64_t i = p.first_row(e); i < p.rows[static_cast<size_t>(e) + 1]; i += 7) {
      GroupedFp8Problem one = p;  // expert e has this row alone, and the others none
      one.counts.assign(3, 0);
      one.counts[static_cast<size_t>(e)] = 1;
      one.rows = {0, e == 0, e <= 1, 1};
      one.x.assign(p.x.begin() + static_cast<int64_t>(x_row) * i, p.x.begin() + static_cast<int64_t>(x_row) * (i + 1));
      one.x_scale.assign(static_cast<size_t>(fp8_blocks(p.k)) * 4, 0.0f);
      for (int64_t b = 0; b < fp8_blocks(p.k); b++) {
        one.x_scale[static_cast<size_t>(b * 4)] = p.x_scale[static_cast<size_t>(b * fp8_scale_stride(p.m()) + i)];
      }
      const std::vector<uint8_t> got = run(one);
      ASSERT_EQ(std::memcmp(got.data(), &all[static_cast<size_t>(i) * row_bytes], row_bytes), 0) << "row " << i;
    }
  }
}

}  // namespace
}  // namespace isobit
