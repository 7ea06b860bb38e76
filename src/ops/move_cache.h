#pragma once
// Keys and values that change their place in the cache: those of an accepted path of a draft tree, to where a chain's
// would be.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "ops/kv_cache.h"

namespace isobit {

// Places of one layer's cache: page·page_size + offset.
struct CacheMove {
  int64_t from = 0, to = 0;
};

// As if one after the other. What a move writes is no later move's source.
struct MoveCacheArgs {
  KvCacheView cache;
  std::span<const CacheMove> moves;  // in the host's memory, read before the call returns

  // Throws Error naming a place that the cache does not have.
  void check() const;
};

// What a move copies: one row a head, of k and of v.
void for_each_row(const KvCacheView& cache, const CacheMove& move,
                  const std::function<void(void* to, const void* from, size_t bytes)>& copy);

}  // namespace isobit
