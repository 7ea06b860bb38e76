#pragma once
// The part of an attention call that one thread does at a time.
#include "numerics/kv_cache.h"
#include "ops/cpu/attention_plan.h"

namespace isobit::cpu {

// Some heads of one group of query heads, for consecutive tokens of one request that find their keys in the same
// places (a tree's tokens come one by one).
struct AttentionTile {
  const AttentionQuery* queries = nullptr;
  int32_t tokens = 0;
  int32_t kv_head = 0;
  int32_t head_begin = 0, head_end = 0;  // query heads
};

// N10's constants for the query heads of a KV head.
inline numerics::AttentionScale score_scale(const AttentionArgs& a, int32_t kv_head) {
  if (a.cache.type != DType::kF8E4M3) return {a.scale, a.soft_cap};
  return numerics::scale_of_cached(a.scale, a.soft_cap, a.cache.k_scale[kv_head], a.cache.v_scale[kv_head]);
}

constexpr int kMaxTileRows = 32;  // tokens · heads, unless one token has more heads

// By the scalar rule, key by key: for a target without vectors.
void attention_tile_scalar(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile);
void attention_tile(int64_t simd, const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile);

}  // namespace isobit::cpu
