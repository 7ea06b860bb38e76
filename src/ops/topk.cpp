#include "ops/topk.h"

#include "base/error.h"

namespace isobit {

void TopkPerRowArgs::check() const {
  require(k >= 1 && k <= kMaxTopk, "topk_per_row: k is {}; it must be in [1, {}]", k, kMaxTopk);
  require(stride >= k && stride <= kMaxTopkLength,
          "topk_per_row: stride is {}; it must be in [k = {}, {}]: a row cannot give more than it has", stride, k,
          kMaxTopkLength);
  require(rows >= 0 && rows <= INT32_MAX / k, "topk_per_row: {} rows; at most {} of k = {} fit", rows, INT32_MAX / k,
          k);
  if (rows == 0) return;
  require(logits != nullptr, "topk_per_row: logits is null");
  require(out != nullptr, "topk_per_row: out is null");
  require(status != nullptr, "topk_per_row: status is null");
}

void check_topk_ranges(std::span<const int32_t> starts, std::span<const int32_t> ends, int64_t stride) {
  require(starts.size() == ends.size(), "topk_per_row: {} starts and {} ends; there must be as many", starts.size(),
          ends.size());
  for (size_t r = 0; r < starts.size(); r++) {
    require(starts[r] >= 0 && starts[r] <= ends[r] && ends[r] <= stride,
            "topk_per_row: row {} has the range [{}, {}); it must ascend and lie within [0, {})", r, starts[r], ends[r],
            stride);
  }
}

}  // namespace isobit
