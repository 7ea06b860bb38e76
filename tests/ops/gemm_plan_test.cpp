// The GEMM's tile choice on the GPU: a pure function, checked without one.
#include "ops/cuda/gemm_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <tuple>

namespace isobit::cuda {
namespace {

constexpr int kSmCount = 132;

// What gemm_kernel.h relies on.
void expect_sound(const GemmShape& s, const GemmPlan& p, int sm_count) {
  SCOPED_TRACE(::testing::Message() << "m " << s.m << " n " << s.n << " k " << s.k << " gated " << s.gated
                                    << " chunked " << s.chunked << ": tile " << 64 * p.tile.warpgroups << "x"
                                    << p.tile.tile_n << " cluster " << p.cluster_m << "x" << p.cluster_n << " stages "
                                    << p.stages);
  const int64_t rows = 64 * p.tile.warpgroups;
  EXPECT_GE(static_cast<int64_t>(p.m_tiles) * p.x_rows, s.m);
  EXPECT_LT(static_cast<int64_t>(p.m_tiles - 1) * p.x_rows, s.m);
  EXPECT_GE(static_cast<int64_t>(p.n_tiles) * p.tile.tile_n, s.n);
  EXPECT_LT(static_cast<int64_t>(p.n_tiles - 1) * p.tile.tile_n, s.n);
  EXPECT_EQ(p.x_rows % (8 * p.cluster_n), 0);  // each CTA's share of x is whole 8-row groups
  EXPECT_EQ(p.tile.tile_n % (8 * p.cluster_m), 0);
  EXPECT_LE(p.x_rows, rows);
  EXPECT_EQ(p.m_tiles, (s.m + rows - 1) / rows);  // no more tiles than full ones would be
  // Staged outputs leave in pieces of sixteen rows, which another tile's must not be among.
  EXPECT_TRUE(p.m_tiles == 1 || p.x_rows == rows || !gemm_tile_stages(p.tile.warpgroups, p.tile.tile_n));
  EXPECT_LE(p.x_rows / p.cluster_n, 256);  // the copy engine's largest box
  EXPECT_GE(p.stages, 2);
  EXPECT_LE(p.stages, 16);
  EXPECT_LE(p.shared_bytes, kGemmMostShared);
  const int slot = 128 * p.tile.slices;
  const int64_t k_stages = (s.k + 64 * p.tile.slices - 1) / (64 * p.tile.slices);
  const int64_t x_slots = s.normed ? k_stages : p.stages;
  const int64_t staging = p.few_rows ? s.m * (p.tile.tile_n + 4) * 4 : 0;
  EXPECT_GE(p.shared_bytes, slot * (x_slots * p.x_rows + p.stages * p.tile.tile_n) + staging + 1024);
  EXPECT_EQ(p.few_rows, p.tile.warpgroups == 1 && s.m <= 16);
  EXPECT_GE(p.window, 1);
  EXPECT_LE(p.window, p.stages);
  // The last slot of x is read 64 · warpgroups rows far; weights' slots follow it.
  EXPECT_GE(p.stages * slot * p.tile.tile_n, (rows - p.x_rows) * 128);
  EXPECT_GT(p.ctas, 0);
  EXPECT_LE(p.ctas, sm_count);
  EXPECT_EQ(p.ctas % (p.cluster_m * p.cluster_n), 0);
  EXPECT_GE(p.group_m, 1);
  EXPECT_TRUE(!s.gated || p.tile.tile_n % 16 == 0);
  EXPECT_TRUE(!s.chunked || gemm_tile_takes_chunks(p.tile.warpgroups, p.tile.tile_n));
}

TEST(GemmPlan, EveryPlanIsSound) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  const auto log_uniform = [&](double most) {
    return static_cast<int64_t>(std::exp(std::uniform_real_distribution<>(0, std::log(most))(rng)));
  };
  for (int i = 0; i < 3000; i++) {
    GemmShape s{.m = log_uniform(20000), .n = log_uniform(200000), .k = log_uniform(30000)};
    s.gated = i % 3 == 0;
    if (s.gated) s.n = (s.n + 15) / 16 * 16;
    if (i % 5 == 0) {
      s.normed = true;
      s.m = 1 + i % kGemmNormedRows;
      s.k = std::min<int64_t>(kGemmNormedK, (s.k + 63) / 64 * 64);
      s.rotated = i % 2 == 0 && !s.gated;
    }
    s.chunked = s.n <= 1024 && s.k > 2048;
    for (const int sms : {kSmCount, 114, 8}) {
      expect_sound(s, gemm_plan(s, sms), sms);
      for (const GemmTile& t : gemm_tiles()) {
        for (const auto& [cm, cn] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {1, 4}}) {
          if (gemm_tile_fits(s, t, cm, cn)) expect_sound(s, gemm_plan_for(s, t, cm, cn, sms), sms);
        }
      }
      if (HasFailure()) return;
    }
  }
}

TEST(GemmPlan, OneRowFillsTheGpuInOneWave) {
  for (const int64_t n : {1024, 2048, 4096, 7168, 14336}) {
    const GemmPlan p = gemm_plan({.m = 1, .n = n, .k = 4096}, kSmCount);
    EXPECT_EQ(p.cluster_tiles() * p.cluster_m * p.cluster_n, p.ctas) << n;
    EXPECT_GE(p.ctas, 120) << n;
  }
}

// 228 KB an SM, of which attention's CTA takes 113 and each CTA one more.
TEST(GemmPlan, AttentionFindsRoomBesideQkv) {
  constexpr int kRoom = (228 - 113 - 2) * 1024;
  const auto qkv = [](int64_t n, int64_t k, bool rotated) {
    return gemm_plan({.m = 1, .n = n, .k = k, .normed = true, .rotated = rotated}, kSmCount);
  };
  EXPECT_LE(qkv(3072, 2048, true).shared_bytes, kRoom);
  EXPECT_GT(qkv(3072, 2048, false).shared_bytes, kRoom);
  EXPECT_EQ(qkv(6144, 4096, true).stages, qkv(6144, 4096, false).stages);  // the ring would be too short
}

TEST(GemmPlan, TilesShareTheRowsEvenly) {
  for (const auto& [m, share] : {std::pair{65, 40}, {80, 40}, {96, 48}, {100, 56}, {128, 64}, {129, 48}}) {
    const GemmPlan p = gemm_plan_for({.m = m, .n = 4096, .k = 4096}, {1, 64, 2}, 2, 1, kSmCount);
    EXPECT_EQ(p.x_rows, share) << m;
  }
}

TEST(GemmPlan, AWideVocabularyTakesFewTiles) {
  for (const int64_t n : {49152, 128256, 151936}) {
    for (const int64_t m : {1, 64}) {
      const GemmPlan p = gemm_plan({.m = m, .n = n, .k = 576}, kSmCount);
      EXPECT_GE(p.tile.tile_n, 112) << n;
      EXPECT_GE(p.ctas, 120) << n;
    }
  }
}

TEST(GemmPlan, ManyRowsTakeTheLargeTileAndShareIt) {
  for (const auto& [m, n, k] : {std::tuple{8192, 8192, 8192}, {4096, 28672, 4096}, {4096, 4096, 14336}}) {
    const GemmPlan p = gemm_plan({.m = m, .n = n, .k = k}, kSmCount);
    EXPECT_EQ(p.tile.warpgroups * 64 * p.tile.tile_n, 128 * 256);
    EXPECT_EQ(p.cluster_m * p.cluster_n, 2);
  }
}

}  // namespace
}  // namespace isobit::cuda
