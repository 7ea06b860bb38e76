#include "ops/cuda/attention_plan.h"

#include <algorithm>
#include <vector>

#include "numerics/contract.h"
#include "ops/cuda/attention_order.h"

namespace isobit::cuda {
namespace {

constexpr int kSuper = numerics::kAttentionSuperBlock;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Super-blocks that a request of up to `added` new tokens may see.
int64_t most_supers(const AttentionArgs& a, int64_t added) {
  const int64_t all = ceil_div(std::max(a.max_kv, 1), kSuper);
  return a.window > 0 ? std::min(all, ceil_div(a.window + added, kSuper) + 1) : all;
}

bool is_fp8(const AttentionArgs& a) { return a.cache.type == DType::kF8E4M3; }

// Every request has as many new tokens as the longest.
bool alike(const AttentionArgs& a) { return a.tokens == static_cast<int64_t>(a.requests) * a.max_query; }

// What the copy engine and the tile shapes of both kernels ask.
bool fast_kernels_take(const AttentionArgs& a) {
  const int d = a.cache.head_dim;
  const bool known = d == 64 || d == 128 || d == 256;
  return known && a.type == DType::kBF16 && (a.cache.type == a.type || is_fp8(a)) && a.cache.page_size % 16 == 0 &&
         a.tree_parent == nullptr && a.requests <= 512;
}

// False where the workspace is too small.
bool plan_decode(const AttentionArgs& a, const AttentionResources& resources, AttentionPlan& plan) {
  const int d = a.cache.head_dim;
  const int64_t group = a.q_heads / a.cache.kv_heads,
                rows = std::min<int64_t>(a.max_query * group, kAttentionDecodeRows);
  plan.query_tiles = rows <= 8 ? 1 : 2;
  const int64_t tile_rows = 8 * plan.query_tiles;
  const int64_t supers = most_supers(a, std::min(a.max_query, kAttentionDecodeRows));
  const int64_t tokens = std::min<int64_t>(a.tokens, static_cast<int64_t>(a.requests) * kAttentionDecodeRows);
  int64_t tiles = (tokens * group + (tile_rows - 1) * a.requests) / tile_rows;
  if (alike(a)) tiles = std::min(tiles, a.requests * ceil_div(rows, tile_rows));
  plan.units = tiles * a.cache.kv_heads * supers;
  // Too few units to fill the GPU: four CTAs share one, or eight while all such clusters find room at once.
  if (plan.units * 2 <= resources.sm_count && attention_decode_clusters(d, is_fp8(a))) {
    plan.cluster = plan.units * 5 <= resources.sm_count ? 8 : 4;
  }
  const int64_t bytes = plan.units * tile_rows * (d + 2) * 4;
  if (supers > 1 && (bytes > resources.workspace_bytes || plan.units > resources.counters)) return false;
  plan.decode = true;
  return true;
}

// The longest time of a cluster, in that of a block of keys, where every request has the most tokens and keys.
int64_t longest_time(const AttentionArgs& a, const AttentionPlan& plan, int clusters, int together) {
  constexpr int kTileTime = 2;  // of a tile beside its blocks, measured at head_dim 256
  const int64_t group = a.q_heads / a.cache.kv_heads, block = numerics::attention_block(a.cache.head_dim),
                tokens = kAttentionPrefillCluster * (64 * plan.warpgroups / group), tiles = plan.tiles / a.requests;
  const TileOrder order(static_cast<int>(plan.tiles), a.cache.kv_heads, a.requests, together, clusters);
  std::vector<int64_t> of_tile(static_cast<size_t>(tiles)), of_cluster(static_cast<size_t>(clusters));
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t first = a.max_kv - a.max_query + tile * tokens, end = std::min<int64_t>(first + tokens, a.max_kv);
    const int64_t begin = a.window > 0 ? std::max<int64_t>(0, first - a.window + 1) : 0;
    of_tile[static_cast<size_t>(tile)] = ceil_div(end, block) - begin / block + kTileTime;
  }
  for (int round = 0; round < order.rounds(); round++) {
    for (int cluster = 0; cluster < clusters; cluster++) {
      const int turn = order.turn(round, cluster);
      if (turn < 0) continue;
      of_cluster[static_cast<size_t>(cluster)] += of_tile[static_cast<uint32_t>(order.tile(turn)) % of_tile.size()];
    }
  }
  return *std::max_element(of_cluster.begin(), of_cluster.end());
}

// Sorting requests' tiles together balances the clusters where their turns would keep step with a request's tiles (16 ×
// 1024 at head_dim 256: 72 blocks for 104), but their keys are then all read at once.
int requests_together(const AttentionArgs& a, const AttentionPlan& plan, int sm_count) {
  constexpr int64_t kL2Bytes = 20 << 20;  // leaves room for what else goes through it
  constexpr int64_t kMostTurns = 1024;    // with more, what is gained is little, and to work it out takes longer
  if (!alike(a) || plan.split || a.requests == 1 || plan.tiles * a.cache.kv_heads > kMostTurns) return 1;
  const int64_t each = int64_t{4} * a.max_kv * a.cache.kv_heads * a.cache.head_dim;
  int together = 1;
  while (together < a.requests && 2 * together * each <= kL2Bytes) together *= 2;
  const int clusters =
      static_cast<int>(std::min<int64_t>(plan.tiles * a.cache.kv_heads, sm_count / kAttentionPrefillCluster));
  return longest_time(a, plan, clusters, together) < longest_time(a, plan, clusters, 1) ? together : 1;
}

bool plan_prefill(const AttentionArgs& a, const AttentionResources& resources, AttentionPlan& plan) {
  const int d = a.cache.head_dim;
  const int64_t group = a.q_heads / a.cache.kv_heads;
  if (group > 64 || a.soft_cap > 0.0f || a.mask != nullptr) return false;
  const auto tiles = [&](int warpgroups) {
    const int64_t tokens = kAttentionPrefillCluster * (64 * warpgroups / group);
    return alike(a) ? a.requests * ceil_div(a.max_query, tokens) : a.tokens / tokens + a.requests;
  };
  plan.warpgroups = d == 64 ? 3 : 2;
  plan.tiles = tiles(plan.warpgroups);
  const int64_t ctas = plan.tiles * a.cache.kv_heads * kAttentionPrefillCluster, supers = most_supers(a, a.max_query);
  const int64_t tile_bytes = plan.warpgroups * 64 * (static_cast<int64_t>(d) + 2) * 4;  // of a CTA
  if (supers > 1 && ctas * 2 <= resources.sm_count && ctas * supers * tile_bytes <= resources.workspace_bytes) {
    plan.split = true;
    plan.tiles *= supers;
  } else if (d == 256 && ctas <= resources.sm_count) {
    plan.warpgroups = 1;
    plan.tiles = tiles(1);
  }
  if (d > 128 && supers > 1 && resources.sm_count * tile_bytes > resources.workspace_bytes) return false;
  plan.together = requests_together(a, plan, resources.sm_count);
  plan.prefill = true;
  return true;
}

// Over an FP8 cache: as many requests, then as many KV heads at a time, as the workspace has room for.
bool plan_widened(const AttentionArgs& a, const AttentionResources& resources, AttentionPlan& plan) {
  const int group = a.q_heads / a.cache.kv_heads;
  int requests = most_prefill_requests(a, plan), heads = a.cache.kv_heads;
  for (;;) {
    AttentionArgs part = a;
    part.cache.type = a.type, part.cache.kv_heads = heads, part.q_heads = heads * group;
    AttentionResources rest = resources;
    rest.workspace_bytes -= widened_cache(a, requests, heads).bytes;
    if (rest.workspace_bytes >= 0 && plan_prefill(part, rest, plan)) break;
    if (requests == 1 && heads == 1) return false;
    int& fewer = requests > 1 ? requests : heads;
    fewer = (fewer + 1) / 2;
  }
  plan.widened_requests = requests, plan.widened_heads = heads;
  return true;
}

}  // namespace

int most_prefill_requests(const AttentionArgs& a, const AttentionPlan& plan) {
  const int64_t group = a.q_heads / a.cache.kv_heads,
                least_tokens = ceil_div(std::max(least_prefill_rows(plan), 1), group);
  return static_cast<int>(std::clamp<int64_t>(a.tokens / least_tokens, 1, a.requests));
}

WidenedCache widened_cache(const AttentionArgs& a, int requests, int heads) {
  WidenedCache w;
  w.page_size = ceil_div(std::max(a.max_kv, 1), kWidenedKeys) * kWidenedKeys;
  w.bytes_each = requests * heads * w.page_size * a.cache.head_dim * 2;
  w.bytes = 2 * w.bytes_each + ceil_div(a.requests * 4, 1024) * 1024;
  return w;
}

AttentionPlan plan_attention(const AttentionArgs& a, const AttentionResources& resources) {
  AttentionPlan plan;
  if (!fast_kernels_take(a)) return plan;
  const int64_t rows = static_cast<int64_t>(a.max_query) * (a.q_heads / a.cache.kv_heads);
  const bool few = rows <= kAttentionDecodeRows;
  // Of few rows all, or those among requests of many.
  if (few || !alike(a)) plan_decode(a, resources, plan);
  if (few && plan.decode) return plan;
  if (is_fp8(a)) {
    plan_widened(a, resources, plan);
  } else {
    plan_prefill(a, resources, plan);
  }
  return plan;
}

}  // namespace isobit::cuda
