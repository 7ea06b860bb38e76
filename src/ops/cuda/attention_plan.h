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
};

// What the plan may use.
struct AttentionResources {
  int sm_count = 132;
  int64_t workspace_bytes = 0;
  int64_t counters = 0;
};

AttentionPlan plan_attention(const AttentionArgs& args, const AttentionResources& resources);

}  // namespace isobit::cuda
