#include "ops/cpu/attention_plan.h"

#include <algorithm>

#include "base/error.h"

namespace isobit::cpu {

AttentionPlan::AttentionPlan(const AttentionArgs& args) : args_(args) {
  queries_.resize(static_cast<size_t>(args.tokens));
  for (int64_t t = 0; t < args.tokens; t++) queries_[static_cast<size_t>(t)].token = t;
  if (args.tree_parent != nullptr) paths_.resize(static_cast<size_t>(args.tokens));
  for (int32_t b = 0; b < args.requests; b++) add_request(b);
}

void AttentionPlan::add_request(int32_t request) {
  const AttentionArgs& a = args_;
  const int64_t begin = a.query_start[request], end = a.query_start[request + 1], length = a.kv_len[request];
  require(begin >= 0 && begin <= end && end <= a.tokens, "attention: query_start of request {} is {}..{}; {} tokens",
          request, begin, end, a.tokens);
  if (length == 0 || begin == end) return;
  require(end - begin <= length, "attention: kv_len of request {} is {}, less than its {} new tokens", request, length,
          end - begin);
  require(length <= int64_t{a.table_stride} * a.cache.page_size,
          "attention: kv_len of request {} is {}; its page table holds {}", request, length,
          int64_t{a.table_stride} * a.cache.page_size);
  require(a.mask == nullptr || length <= int64_t{a.mask_stride} * 64,
          "attention: kv_len of request {} is {}; a mask row holds {}", request, length, int64_t{a.mask_stride} * 64);
  const int64_t prefix = length - (end - begin);
  for (int64_t t = begin; t < end; t++) {
    AttentionQuery& q = queries_[static_cast<size_t>(t)];
    q.request = request;
    q.prefix = prefix;
    q.position = prefix + (t - begin);
    if (a.tree_parent != nullptr) {
      const int32_t parent = a.tree_parent[t];
      require(parent >= -1 && parent < t - begin, "attention: tree_parent of token {} is {}; it must be in [-1, {})", t,
              parent, t - begin);
      std::vector<int32_t>& path = paths_[static_cast<size_t>(t)];
      if (parent >= 0) path = paths_[static_cast<size_t>(begin + parent)];
      path.push_back(static_cast<int32_t>(t - begin));
      q.path = path.data();
      q.position = prefix + static_cast<int64_t>(path.size()) - 1;
    }
    q.last = a.causal ? q.position + 1 : length;
    q.first = a.window > 0 ? std::max<int64_t>(0, q.position - a.window + 1) : 0;
    if (a.mask != nullptr) q.mask = a.mask + t * a.mask_stride;
    check_pages(q);
  }
}

void AttentionPlan::check_pages(const AttentionQuery& q) const {
  const int32_t size = args_.cache.page_size;
  const int64_t end = args_.tree_parent == nullptr ? q.last : args_.kv_len[q.request];
  // Neighbouring queries see nearly the same pages: only what the one before did not see is checked.
  const bool follows = q.token > 0 && queries_[static_cast<size_t>(q.token - 1)].request == q.request &&
                       queries_[static_cast<size_t>(q.token - 1)].last > 0 &&
                       queries_[static_cast<size_t>(q.token - 1)].first <= q.first;
  const int64_t begin = follows ? std::max(q.first, queries_[static_cast<size_t>(q.token - 1)].last) : q.first;
  for (int64_t page = begin / size; page * size < end; page++) {
    const int32_t id = args_.page_table[int64_t{q.request} * args_.table_stride + page];
    require(id >= 0 && id < args_.cache.pages, "attention: page {} of request {} is {}; the cache has {} pages", page,
            q.request, id, args_.cache.pages);
  }
}

int64_t AttentionPlan::element(int32_t request, int64_t index, int32_t kv_head) const {
  const KvCacheView& c = args_.cache;
  const int64_t page = args_.page_table[int64_t{request} * args_.table_stride + index / c.page_size];
  return ((page * c.kv_heads + kv_head) * c.page_size + index % c.page_size) * c.head_dim;
}

}  // namespace isobit::cpu
