#pragma once
// What one new token of an attention call sees, resolved from the arguments. Shared by the scalar and the SIMD form.
#include <cstdint>
#include <vector>

#include "ops/attention.h"

namespace isobit::cpu {

struct AttentionQuery {
  int32_t request = 0;
  int64_t token = 0;
  int64_t prefix = 0;              // keys before the request's new tokens
  int64_t position = 0;            // of the token, on its own path
  int64_t first = 0, last = 0;     // keys outside [first, last) are not seen
  const int32_t* path = nullptr;   // trees: path[d] is the new token at depth d; null: a chain
  const uint64_t* mask = nullptr;  // of this token; null: all

  bool allowed(int64_t key) const {
    return key >= first && key < last && (mask == nullptr || ((mask[key / 64] >> (key % 64)) & 1) != 0);
  }
  // Where the key at path position `key` lies, in the order of the cache.
  int64_t cache_index(int64_t key) const { return path == nullptr || key < prefix ? key : prefix + path[key - prefix]; }
};

class AttentionPlan {
 public:
  // Throws Error where query_start, kv_len, tree or page table contradict the other arguments. Keeps `args`.
  explicit AttentionPlan(const AttentionArgs& args);

  // One per token, in order; a token of a padding request (kv_len 0) or past the last request sees nothing.
  const std::vector<AttentionQuery>& queries() const { return queries_; }

  // First element of the k or v of one head at an index of the request's cache.
  int64_t element(int32_t request, int64_t index, int32_t kv_head) const;

 private:
  void add_request(int32_t request);
  void check_pages(const AttentionQuery& q) const;

  const AttentionArgs& args_;
  std::vector<AttentionQuery> queries_;
  std::vector<std::vector<int32_t>> paths_;
};

}  // namespace isobit::cpu
