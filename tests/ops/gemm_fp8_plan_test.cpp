// The FP8 GEMM's tile choice on the GPU: a pure function, checked without one.
#include "ops/cuda/gemm_fp8_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

namespace isobit::cuda {
namespace {

constexpr int kSmCount = 132;

// What gemm_fp8_kernel.cuh relies on.
void expect_sound(const GemmFp8Shape& s, const GemmFp8Plan& p, int sm_count) {
  const GemmFp8Tile& t = p.tile();
  SCOPED_TRACE(testing::Message() << "m " << s.m << " n " << s.n << " k " << s.k << ": tile " << 64 * t.warpgroups
                                  << "x" << t.tile_n << " rows " << p.tile_m << " cluster " << p.cluster_m << " stages "
                                  << p.stages << " staged " << p.staged);
  EXPECT_GE(static_cast<int64_t>(p.m_tiles) * p.tile_m, s.m);
  EXPECT_LT(static_cast<int64_t>(p.m_tiles - 1) * p.tile_m, s.m);
  EXPECT_GE(static_cast<int64_t>(p.n_tiles) * t.tile_n, s.n);
  EXPECT_LT(static_cast<int64_t>(p.n_tiles - 1) * t.tile_n, s.n);
  EXPECT_TRUE(p.tile_m > 0 && p.tile_m % 8 == 0 && p.tile_m <= 64 * t.warpgroups);
  EXPECT_EQ(t.tile_n / p.cluster_m % (t.permuted ? 32 : 8), 0);  // each CTA's share is whole groups of rows
  EXPECT_LE(t.tile_n / p.cluster_m, 256);                        // the copy engine's largest box
  EXPECT_TRUE(!p.staged || p.tile_m == 64 * t.warpgroups);       // no row of another tile is written
  EXPECT_GE(p.stages, 2);
  EXPECT_LE(p.stages, kGemmFp8MaxStages);
  EXPECT_LE(p.shared_bytes, 226 * 1024);
  const int spare = p.shared_bytes - p.stages * gemm_fp8_stage_bytes(t, p.tile_m, p.scale_rows);
  EXPECT_GE(spare, 1024 + (64 * t.warpgroups - p.tile_m) * 4 + (p.staged ? p.tile_m * t.tile_n * 2 : 0));
  // The last slot of x is read 64 · warpgroups rows far; w's slots follow it.
  EXPECT_GE(p.stages * t.slices * t.tile_n, 64 * t.warpgroups - p.tile_m);
  EXPECT_GT(p.ctas, 0);
  EXPECT_LE(p.ctas, sm_count);
  EXPECT_EQ(p.ctas % p.cluster_m, 0);
  EXPECT_GE(p.group_m, 1);
}

TEST(GemmFp8Plan, EveryPlanIsSound) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  const auto log_uniform = [&](double most) {
    return static_cast<int64_t>(std::exp(std::uniform_real_distribution<>(0, std::log(most))(rng)));
  };
  for (int i = 0; i < 500; i++) {
    const GemmFp8Shape s{log_uniform(20000), log_uniform(200000), log_uniform(30000)};
    for (const int sms : {kSmCount, 114, 8}) {
      expect_sound(s, gemm_fp8_plan(s, sms), sms);
      for (int tile = 0; tile < kGemmFp8TileCount; tile++) {
        for (const int cluster : {1, 2, 4}) {
          const int tile_m = gemm_fp8_tile_m(s, tile, cluster);
          if (!gemm_fp8_fits(s, tile, cluster, tile_m)) continue;
          expect_sound(s, gemm_fp8_plan_for(s, tile, cluster, tile_m, sms, 225 * 1024), sms);
          if (!gemm_fp8_can_stage(tile, tile_m)) continue;
          expect_sound(s, gemm_fp8_plan_for(s, tile, cluster, tile_m, sms, 225 * 1024, true), sms);
        }
      }
      if (HasFailure()) return;
    }
  }
}

// What gemm_fp8_thin.cu relies on.
TEST(GemmFp8Plan, EveryThinPlanIsSound) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  const auto log_uniform = [&](double most) {
    return static_cast<int64_t>(std::exp(std::uniform_real_distribution<>(0, std::log(most))(rng)));
  };
  int taken = 0;
  for (int i = 0; i < 2000; i++) {
    const GemmFp8Shape s{1 + i % 10, log_uniform(200000), log_uniform(60000)};
    const int cluster = 1 << rng() % 4, resident = 1 + static_cast<int>(rng() % 3);
    for (const GemmFp8ThinPlan& p :
         {gemm_fp8_thin_plan_for(s, cluster, resident, kSmCount), gemm_fp8_thin_plan(s, kSmCount)}) {
      if (p.stages == 0) continue;
      taken++;
      SCOPED_TRACE(testing::Message() << "m " << s.m << " n " << s.n << " k " << s.k << " cluster " << p.cluster);
      const int64_t blocks = (s.k + 127) / 128;
      ASSERT_LE(s.m, kGemmFp8ThinRows);
      ASSERT_GE(p.stages, 2);
      ASSERT_LE(p.stages, kGemmFp8MaxStages);
      ASSERT_EQ(p.rank_blocks % kGemmFp8ThinSlices, 0);
      ASSERT_LE(p.rank_blocks, 128);  // a thread has a scale each
      ASSERT_GE(int64_t{p.rank_blocks} * p.cluster, blocks);
      ASSERT_LT(int64_t{p.rank_blocks} * (p.cluster - 1), blocks);  // no CTA without work
      ASSERT_GE(int64_t{p.tiles} * 64, s.n);
      ASSERT_EQ(p.ctas, p.cluster > 1 ? p.tiles * p.cluster : std::min(p.ctas, p.tiles));
      ASSERT_LE(p.shared_bytes, 226 * 1024);
    }
  }
  EXPECT_GT(taken, 400);
}

// An 8B decoder's step of one row: gate and up leave as a product only where a CTA has all of K, q and k turn only in
// clusters.
TEST(GemmFp8Plan, OneRowTakesItsNeighboursOn) {
  EXPECT_EQ(gemm_fp8_thin_plan({1, 28672, 4096}, kSmCount).cluster, 1);
  EXPECT_GT(gemm_fp8_thin_plan({1, 6144, 4096}, kSmCount).cluster, 1);
}

TEST(GemmFp8Plan, FewRowsFillTheGpuInOneWave) {
  for (const auto& [n, k] : {std::pair{2112, 7168}, {24576, 1536}, {7168, 16384}, {4096, 7168}, {7168, 2048}}) {
    for (const int m : {1, 16, 64}) {
      const GemmFp8Plan p = gemm_fp8_plan({m, n, k}, kSmCount);
      EXPECT_EQ(p.cluster_tiles() * p.cluster_m, p.ctas) << n;
      EXPECT_GE(p.ctas, 112) << n;
    }
  }
}

TEST(GemmFp8Plan, ManyRowsTakeALargeTileAndShareIt) {
  for (const auto& [n, k] : {std::pair{24576, 1536}, {7168, 16384}, {4096, 7168}, {8192, 8192}}) {
    const GemmFp8Plan p = gemm_fp8_plan({4096, n, k}, kSmCount);
    EXPECT_EQ(p.tile().warpgroups, 2);
    EXPECT_GE(p.tile().tile_n, 192);
    EXPECT_EQ(p.cluster_m, 2);
  }
}

}  // namespace
}  // namespace isobit::cuda
