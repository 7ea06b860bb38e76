#pragma once
// The paged KV cache of one layer, as operators see it. Position p of a request lives in page page_table[request, p /
// page_size] at offset p mod page_size.
#include "base/dtype.h"

namespace isobit {

struct KvCacheView {
  void* k = nullptr;  // [pages, kv_heads, page_size, head_dim]
  void* v = nullptr;  // the same
  int64_t pages = 0;
  int32_t kv_heads = 0, page_size = 0, head_dim = 0;
  DType type = DType::kBF16;       // kBF16, kF16; kF8E4M3 with scales
  const float* k_scale = nullptr;  // [kv_heads], FP8 only
  const float* v_scale = nullptr;

  int64_t page_elements() const { return static_cast<int64_t>(kv_heads) * page_size * head_dim; }
};

}  // namespace isobit
