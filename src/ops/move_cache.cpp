#include "ops/move_cache.h"

#include "base/error.h"
#include "ops/backend.h"

namespace isobit {

void MoveCacheArgs::check() const {
  const int64_t places = cache.pages * cache.page_size;
  for (const CacheMove& m : moves) {
    for (const int64_t place : {m.from, m.to}) {
      require(place >= 0 && place < places, "move_cache: place {} is not one of the cache's {}", place, places);
    }
  }
}

void for_each_row(const KvCacheView& cache, const CacheMove& move,
                  const std::function<void(void* to, const void* from, size_t bytes)>& copy) {
  const size_t bytes = dtype_bytes(cache.type, static_cast<size_t>(cache.head_dim));
  const auto row = [&](int64_t place, int32_t head) {
    return (place / cache.page_size * cache.kv_heads + head) * cache.page_size + place % cache.page_size;
  };
  for (void* plane : {cache.k, cache.v}) {
    for (int32_t head = 0; head < cache.kv_heads; head++) {
      auto* const base = static_cast<std::byte*>(plane);
      copy(base + static_cast<size_t>(row(move.to, head)) * bytes,
           base + static_cast<size_t>(row(move.from, head)) * bytes, bytes);
    }
  }
}

void Backend::move_cache(const MoveCacheArgs& a) {
  a.check();
  for (const CacheMove& move : a.moves)
    for_each_row(a.cache, move, [this](void* to, const void* from, size_t bytes) { copy(to, from, bytes); });
}

}  // namespace isobit
