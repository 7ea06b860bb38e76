#pragma once
// The write of q, k, v as attention reads them: what rope_cache.cu and the GEMM that rotates its outputs share.
#include <cstdint>

#include "ops/rope.h"

namespace isobit::cuda {

// Whether both elements are finite; one that is not becomes +0 where `replace` asks for it.
__device__ inline bool check_finite(uint32_t& packed, uint32_t exponent, bool replace) {
  const bool low = (packed & exponent) != exponent, high = (packed & exponent << 16) != exponent << 16;
  if (replace && !low) packed &= 0xffff0000;
  if (replace && !high) packed &= 0x0000ffff;
  return low && high;
}

// Where a token's heads lie in the cache: elements from the start.
struct CachePlace {
  int64_t first, head_stride;
};
__device__ inline CachePlace cache_place(const KvCacheView& c, int64_t slot) {
  const uint32_t page_size = static_cast<uint32_t>(c.page_size), page = static_cast<uint32_t>(slot) / page_size;
  const uint32_t offset = static_cast<uint32_t>(slot) - page * page_size;
  const int64_t stride = static_cast<int64_t>(c.page_size) * c.head_dim;
  return {page * c.kv_heads * stride + static_cast<int64_t>(offset) * c.head_dim, stride};
}

// The engine lets neither a slot past the cache nor a position past the tables through; a request that had them ends.
__device__ inline bool in_bounds(const RopeCacheArgs& a, int64_t slot, int64_t position) {
  return slot < a.cache.pages * a.cache.page_size && (a.cos == nullptr || (position >= 0 && position < a.max_position));
}

}  // namespace isobit::cuda
