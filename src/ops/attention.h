#pragma once
#include "ops/kv_cache.h"

namespace isobit {

// Attention over the paged cache by rule N10: prefill, chunk, decode and verify alike. The keys of the new tokens are
// in the cache already. Token t of request b, query_start[b] <= t < query_start[b+1], is at position kv_len[b] -
// (query_start[b+1] - t) and sees the keys 0..position that window, mask and tree leave it.
struct AttentionArgs {
  const uint16_t* q = nullptr;  // [tokens, q_heads, head_dim]
  KvCacheView cache;
  const int32_t* query_start = nullptr;  // [requests + 1], ascending from 0
  const int32_t* kv_len = nullptr;       // [requests], the new tokens counted; 0: padding, outputs 0
  const int32_t* page_table = nullptr;   // [requests, table_stride]
  int32_t tokens = 0, requests = 0, q_heads = 0, table_stride = 0;
  int32_t max_query = 0, max_kv = 0;  // no request has more new tokens, or more keys
  float scale = 1.0f;                 // of the scores, usually 1/√head_dim
  float soft_cap = 0.0f;              // 0: none
  int32_t window = 0;                 // the query and the window - 1 keys before it; 0: no window
  bool causal = true;
  const float* sinks = nullptr;  // [q_heads] or null
  // A bit per (token, absolute position), [tokens, mask_stride]: 1 = allowed; ANDed with causality and window. Null:
  // all.
  const uint64_t* mask = nullptr;
  int32_t mask_stride = 0;
  // Speculative trees: tree_parent[t] is the index, among the request's new tokens, of token t's parent, -1 for a child
  // of the prefix's last token. A node's position is the prefix length plus its depth, and its keys are the prefix and
  // its own path; node i's key lies in the cache at index prefix + i. Null: new tokens form a chain.
  const int32_t* tree_parent = nullptr;  // [tokens]
  DType type = DType::kBF16;
  uint16_t* out = nullptr;  // [tokens, q_heads, head_dim]

  void check() const;
};

}  // namespace isobit
