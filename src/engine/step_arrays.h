#pragma once
// A step's inputs as the host writes them: requests one after the other, then padding up to the step's shape.
#include <cstdint>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "models/decoder.h"
#include "ops/backend.h"

namespace isobit {

// A page table on the backend, and what is known to stand in it: a step sends what has changed.
class PageTable {
 public:
  PageTable(Buffer table, int32_t requests, int32_t stride);
  // Pages of -1 leave what stood there: nobody reads it.
  void set(size_t row, std::span<const PageId> pages);
  // From the first change to the last, once.
  Upload changes();

 private:
  Buffer table_;
  size_t stride_;
  std::vector<PageId> sent_;
  size_t first_, last_ = 0;  // what has changed since
};

// What a step's shape is padded to, so that a captured graph serves many steps.
StepShape padded(const StepShape& shape, const Backend& backend, const Decoder& decoder, int32_t page_size);

class StepArrays {
 public:
  // page_size: tokens a page. inputs: the decoder's; slots, positions: of the sampled rows.
  StepArrays(const Decoder& decoder, const Buffer& slots, const Buffer& positions, int32_t page_size);

  void start(const StepShape& shape, int32_t logit_rows);
  // Where a request's keys and values are. `window`: of layers with pages of their own, -1 for pages out of sight; or
  // empty.
  struct Pages {
    std::span<const PageId> all, window;
  };
  // The next request's tokens, from `position` on. One of -2 - r is what row r of the step before has sampled. The last
  // ones may be a tree behind those before: tree_parents[i] is among them, or -1.
  void add_request(const Pages& pages, int32_t position, std::span<const int32_t> tokens,
                   std::span<const int32_t> tree_parents = {});
  // Of the step's token-th token.
  int32_t position(int32_t token) const { return position_[static_cast<size_t>(token)]; }
  // Sampled row `row`: after the step's `token`-th token, by the sampler's `slot`, for `position`.
  void set_row(int32_t row, int32_t token, int32_t slot, int32_t position);
  // What to send; valid until the next start().
  std::vector<Upload> uploads();

 private:
  StepInputs inputs_;
  Buffer slot_buffer_, position_buffer_;
  int32_t* nonfinite_;
  int32_t page_size_;
  PageTable table_, window_table_;
  std::vector<int32_t> token_, position_, parent_, start_, kv_, row_, slot_, at_, no_flags_;
  std::vector<int64_t> place_, window_place_;
  size_t tokens_ = 0, requests_ = 0;
  bool drawn_ = false, trees_ = false;
};

}  // namespace isobit
