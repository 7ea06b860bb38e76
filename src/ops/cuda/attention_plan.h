#pragma once
// Which attention kernels, with which tiles: a pure function of shapes that the host knows.
#include <cstdint>

#include "ops/attention.h"

namespace isobit::cuda {

// Rows (queries times the heads of a KV head) up to which a request's time is that of reading its keys.
constexpr int kAttentionDecodeRows = 64;

// Decode: the last of the context's counters share out the units.
constexpr int kAttentionTickets = 2;

// Prefill: CTAs of a cluster, which share a tile.
constexpr int kAttentionPrefillCluster = 2;

// Whether the decode kernel is compiled for clusters that share a unit: each takes a minute, and few ask for this one.
constexpr bool attention_decode_clusters(int head_dim, bool fp8) { return head_dim <= 128 || !fp8; }

struct AttentionPlan {
  // Each request is done by one of the two, by its rows; neither: everything is the generic kernel's.
  bool decode = false, prefill = false;
  // Decode: tiles of 8·query_tiles rows, CTAs a cluster, and an upper bound of the units of work.
  int query_tiles = 1, cluster = 1;
  int64_t units = 0;
  // Prefill: tiles of 64·warpgroups rows a CTA, and an upper bound of their number for one KV head. Split: each
  // super-block of a tile counts as one, and a second launch folds them.
  int warpgroups = 2;
  int64_t tiles = 0;
  bool split = false;
  int together = 1;  // TileOrder's (attention_order.h)
  // Prefill over an FP8 cache: so many requests and KV heads at a time are widened into the workspace. 0: none is.
  int widened_requests = 0, widened_heads = 0;
};

// Fewer rows than these are the decode kernel's.
inline int least_prefill_rows(const AttentionPlan& plan) { return plan.decode ? kAttentionDecodeRows + 1 : 0; }

// Requests that the prefill kernel may have, at most.
int most_prefill_requests(const AttentionArgs& args, const AttentionPlan& plan);

// Room for keys and values of an FP8 cache as bf16, a page a request, and for the table of these pages.
constexpr int kWidenedKeys = 128;  // which a page is a multiple of
struct WidenedCache {
  int64_t page_size = 0, bytes_each = 0, bytes = 0;  // of keys or values; of all
};
WidenedCache widened_cache(const AttentionArgs& args, int requests, int heads);

// What the plan may use.
struct AttentionResources {
  int sm_count = 132;
  int64_t workspace_bytes = 0;
  int64_t counters = 0;
};

AttentionPlan plan_attention(const AttentionArgs& args, const AttentionResources& resources);

}  // namespace isobit::cuda
