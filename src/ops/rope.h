#pragma once
#include "ops/kv_cache.h"

namespace isobit {

enum class RopeLayout : uint8_t {
  kInterleaved,  // pairs (2i, 2i+1): Llama as GGUF stores it
  kHalves,       // pairs (i, i + dim/2): NeoX, Qwen, Gemma
};

// From the fused projection's accumulators to what attention reads: optional QK-norm (rule N8 over head_dim), rotation
// of q and k (rule N9), one rounding, and k, v written to their cache slots. The cache stays finite (rule N21): a k or
// v that is not is stored as +0. Where any element of q, k or v is not finite after rounding, nonfinite[t] = 1.
struct RopeCacheArgs {
  const float* qkv = nullptr;          // [count, (q_heads + 2·kv_heads)·head_dim]: q heads, k heads, v heads
  const int32_t* positions = nullptr;  // [count]
  const int64_t* slots = nullptr;      // [count]: page·page_size + offset; negative: padding, nothing is written
  int64_t count = 0;
  int32_t q_heads = 0;
  const float* cos = nullptr;  // [max_position, rope_dim/2]; null: no rotation
  const float* sin = nullptr;
  int32_t rope_dim = 0;  // leading elements of a head that turn, even, at most head_dim
  int64_t max_position = 0;
  RopeLayout layout = RopeLayout::kInterleaved;
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float norm_eps = 1e-6f;
  KvCacheView cache;
  DType type = DType::kBF16;
  uint16_t* q = nullptr;         // out [count, q_heads, head_dim]
  int32_t* nonfinite = nullptr;  // [count], only ever set to 1, or null

  void check() const;
};

}  // namespace isobit
