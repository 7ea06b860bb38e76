// The choice of attention kernels, a pure function: no GPU needed.
#include "ops/cuda/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>

namespace isobit::test {
namespace {

using cuda::AttentionPlan;
using cuda::AttentionResources;

constexpr AttentionResources kH200 = {132, int64_t{64} << 20, 1 << 16};

AttentionArgs shape(int head_dim, int q_heads, int kv_heads, int requests, int added, int max_kv) {
  AttentionArgs a;
  a.cache.head_dim = head_dim, a.cache.kv_heads = kv_heads, a.cache.page_size = 16;
  a.q_heads = q_heads;
  a.requests = requests, a.max_query = added, a.tokens = requests * added, a.max_kv = max_kv;
  return a;
}

std::string kernels(const AttentionPlan& p) {
  return p.decode && p.prefill ? "both" : p.decode ? "decode" : p.prefill ? "prefill" : "generic";
}

TEST(AttentionPlan, FewQueriesAreDecoded) {
  for (const int requests : {1, 7, 8, 9, 128}) {
    for (const int added : {1, 4, 16}) {
      // 128 × 16 × 32 rows of four super-blocks are more partial results than the workspace holds.
      const char* expected = requests * added > 1024 ? "prefill" : "decode";
      EXPECT_EQ(kernels(plan_attention(shape(128, 32, 8, requests, added, 8192), kH200)), expected);
    }
    EXPECT_EQ(kernels(plan_attention(shape(128, 32, 8, requests, 17, 8192), kH200)), "prefill");
    EXPECT_EQ(kernels(plan_attention(shape(128, 32, 8, requests, 512, 8192), kH200)), "prefill");
  }
}

TEST(AttentionPlan, OneLongChunkAmongDecodes) {
  AttentionArgs a = shape(128, 32, 8, 32, 512, 8192);
  a.tokens = 512 + 31;
  const AttentionPlan p = plan_attention(a, kH200);
  EXPECT_EQ(kernels(p), "both");
  EXPECT_GE(p.tiles, 512 * 4 / (128 * cuda::kAttentionPrefillCluster));
  EXPECT_GE(p.units, 31 * 8 * 4);
}

TEST(AttentionPlan, RowsOfATile) {
  EXPECT_EQ(plan_attention(shape(128, 32, 8, 8, 1, 1024), kH200).query_tiles, 1);  // 4 rows
  EXPECT_EQ(plan_attention(shape(256, 8, 4, 32, 4, 8004), kH200).query_tiles, 1);  // 8 rows
  EXPECT_EQ(plan_attention(shape(128, 32, 8, 8, 4, 1024), kH200).query_tiles, 2);  // 16 rows
}

TEST(AttentionPlan, AFewUnitsAreSharedByClusters) {
  EXPECT_EQ(plan_attention(shape(64, 32, 8, 1, 1, 1025), kH200).cluster, 8);    // 8 units
  EXPECT_EQ(plan_attention(shape(128, 32, 8, 1, 1, 8192), kH200).cluster, 4);   // 32 units
  EXPECT_EQ(plan_attention(shape(128, 32, 8, 1, 1, 32768), kH200).cluster, 1);  // 128 units
  EXPECT_EQ(plan_attention(shape(128, 32, 8, 32, 1, 8192), kH200).cluster, 1);  // 1024 units
}

TEST(AttentionPlan, UnitsBoundWhatAWindowSees) {
  AttentionArgs a = shape(256, 8, 4, 32, 4, 8004);
  EXPECT_EQ(plan_attention(a, kH200).units, 32 * 4 * 4);
  a.window = 1024;  // at most two super-blocks
  EXPECT_EQ(plan_attention(a, kH200).units, 32 * 4 * 2);
}

TEST(AttentionPlan, WhatOnlyTheGenericKernelTakes) {
  AttentionArgs a = shape(128, 32, 8, 1, 1, 4096);
  a.cache.page_size = 8;
  EXPECT_EQ(kernels(plan_attention(a, kH200)), "generic");
  a = shape(96, 32, 8, 1, 1, 4096);
  EXPECT_EQ(kernels(plan_attention(a, kH200)), "generic");
  a = shape(128, 32, 8, 1, 1, 4096);
  const int32_t parent = -1;
  a = shape(128, 32, 8, 1, 1, 4096);
  a.tree_parent = &parent;
  EXPECT_EQ(kernels(plan_attention(a, kH200)), "generic");
}

// Over an FP8 cache prefill widens all at once where there is room, else some requests or, of one, some heads at a
// time.
TEST(AttentionPlan, WidensAnFp8CacheForPrefill) {
  for (const int head_dim : {64, 128, 256}) {
    AttentionArgs a = shape(head_dim, 32, 8, 1, 1, 4096);
    a.cache.type = DType::kF8E4M3;
    EXPECT_EQ(kernels(plan_attention(a, kH200)), "decode");
    a.max_query = a.tokens = 512;
    EXPECT_EQ(kernels(plan_attention(a, kH200)), "prefill");
    a.requests = 32, a.tokens = 512 + 31;
    EXPECT_EQ(kernels(plan_attention(a, kH200)), "both");
  }
  AttentionArgs a = shape(128, 32, 8, 1, 512, 4096);
  a.cache.type = DType::kF8E4M3;
  EXPECT_EQ(plan_attention(a, kH200).widened_heads, 8);
  a.max_kv = 65536;
  const AttentionPlan plan = plan_attention(a, kH200);
  EXPECT_EQ(kernels(plan), "prefill");
  EXPECT_LT(plan.widened_heads, 8);
  EXPECT_LT(cuda::widened_cache(a, plan.widened_requests, plan.widened_heads).bytes, kH200.workspace_bytes);
  a.max_query = a.tokens = 1, a.cache.head_dim = 256;  // not in clusters
  EXPECT_EQ(plan_attention(a, kH200).cluster, 1);
}

// Lengths are read on the device, so what the host does for a step of 256 requests must be little: 20 us at most.
TEST(AttentionPlan, TakesTheHostLittleTime) {
  AttentionArgs a = shape(128, 32, 8, 256, 512, 8192);
  a.tokens = 512 + 255;
  double best_us = 1e9;
  int64_t units = 0;
  for (int i = 0; i < 100; i++) {
    const auto begin = std::chrono::steady_clock::now();
    units += plan_attention(a, kH200).units;
    const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
    best_us = std::min(best_us, taken.count());
  }
  EXPECT_GT(units, 0);
  EXPECT_LT(best_us, 20.0);
  RecordProperty("us", std::to_string(best_us));
}

TEST(AttentionPlan, SmallWorkspace) {
  AttentionResources small = kH200;
  small.workspace_bytes = 1000;
  EXPECT_EQ(kernels(plan_attention(shape(128, 32, 8, 32, 1, 8192), small)), "prefill");  // folds within a CTA
  EXPECT_EQ(kernels(plan_attention(shape(128, 32, 8, 32, 1, 2048), small)), "decode");   // nothing to fold
  EXPECT_EQ(kernels(plan_attention(shape(256, 8, 4, 32, 1, 8192), small)), "generic");
}

TEST(AttentionPlan, SmallTilesWhereLargeOnesLeaveProcessorsIdle) {
  EXPECT_EQ(plan_attention(shape(256, 8, 4, 1, 1000, 1000), kH200).warpgroups, 1);
  EXPECT_EQ(plan_attention(shape(256, 8, 4, 16, 1024, 1024), kH200).warpgroups, 2);
}

}  // namespace
}  // namespace isobit::test
