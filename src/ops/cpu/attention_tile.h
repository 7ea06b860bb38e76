#pragma once
// The part of an attention call that one thread does at a time.
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

constexpr int kMaxTileRows = 32;  // tokens · heads, unless one token has more heads

// By the scalar rule, key by key: for a target without vectors.
void attention_tile_scalar(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile);
void attention_tile(int64_t simd, const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile);

}  // namespace isobit::cpu
