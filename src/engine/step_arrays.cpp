#include "engine/step_arrays.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace isobit {
namespace {

// A bound of the keys that seldom changes while sequences grow: within a quarter of them.
int32_t key_bucket(int32_t keys) {
  const auto step = static_cast<int32_t>(std::max(256U, std::bit_floor(static_cast<uint32_t>(keys)) / 4));
  return (keys + step - 1) / step * step;
}

}  // namespace

StepShape padded(const StepShape& shape, const Backend& backend, const Decoder& decoder, int32_t page_size) {
  const StepLimits& limits = decoder.limits();
  StepShape to;
  to.tokens = std::min(backend.bucket(shape.tokens), limits.tokens);
  to.requests = std::min(backend.bucket(shape.requests), limits.requests);
  to.max_query = std::min(backend.bucket(shape.max_query), to.tokens);
  to.max_kv = std::min(key_bucket(shape.max_kv), limits.table_stride * page_size);
  to.trees = shape.trees;
  return to;
}

PageTable::PageTable(Buffer table, int32_t requests, int32_t stride)
    : table_(std::move(table)),
      stride_(static_cast<size_t>(stride)),
      sent_(static_cast<size_t>(requests) * stride_, 0),  // as allocated
      first_(sent_.size()) {}

void PageTable::set(size_t row, std::span<const PageId> pages) {
  for (size_t i = 0; i < pages.size(); i++) {
    const size_t at = row * stride_ + i;
    if (pages[i] < 0 || std::exchange(sent_[at], pages[i]) == pages[i]) continue;
    first_ = std::min(first_, at);
    last_ = std::max(last_, at + 1);
  }
}

Upload PageTable::changes() {
  const size_t from = std::exchange(first_, sent_.size()), to = std::exchange(last_, 0);
  if (from >= to) return {table_.data(), sent_.data(), 0};
  return {table_.data<PageId>() + from, sent_.data() + from, (to - from) * sizeof(PageId)};
}

StepArrays::StepArrays(const Decoder& decoder, const Buffer& slots, const Buffer& positions, int32_t page_size)
    : inputs_(decoder.inputs()),
      slot_buffer_(slots),
      position_buffer_(positions),
      nonfinite_(decoder.nonfinite()),
      page_size_(page_size),
      table_(inputs_.page_table, decoder.limits().requests, decoder.limits().table_stride),
      window_table_(inputs_.window_table, decoder.limits().requests, decoder.limits().table_stride) {}

void StepArrays::start(const StepShape& shape, int32_t logit_rows) {
  const auto tokens = static_cast<size_t>(shape.tokens), requests = static_cast<size_t>(shape.requests),
             rows = static_cast<size_t>(logit_rows);
  trees_ = shape.trees;
  parent_.assign(trees_ ? tokens : 0, -1);
  token_.assign(tokens, -1);
  position_.assign(tokens, 0);
  place_.assign(tokens, -1);
  window_place_.assign(inputs_.window_slots.data() != nullptr ? tokens : 0, -1);
  no_flags_.assign(tokens, 0);
  start_.assign(requests + 1, 0);
  kv_.assign(requests, 0);
  row_.assign(rows, -1);
  slot_.assign(rows, -1);
  at_.assign(rows, 0);
  tokens_ = requests_ = 0;
  drawn_ = false;
}

// A token's key lies where it stands among the new tokens; its position is its parent's and one.
void StepArrays::add_request(const Pages& pages, int32_t position, std::span<const int32_t> tokens,
                             std::span<const int32_t> tree_parents) {
  const auto count = static_cast<int32_t>(tokens.size()), chain = count - static_cast<int32_t>(tree_parents.size());
  const size_t first = tokens_;
  for (int32_t i = 0; i < count; i++) {
    const int32_t token = tokens[static_cast<size_t>(i)], index = position + i;
    const int32_t parent = i < chain ? i - 1 : chain + tree_parents[static_cast<size_t>(i - chain)];
    token_[tokens_] = token;
    drawn_ = drawn_ || token < -1;
    position_[tokens_] = parent < 0 ? position : position_[first + static_cast<size_t>(parent)] + 1;
    if (trees_) parent_[tokens_] = parent;
    place_[tokens_] = cache_place(pages.all, index, page_size_);
    if (!pages.window.empty()) window_place_[tokens_] = cache_place(pages.window, index, page_size_);
    tokens_++;
  }
  table_.set(requests_, pages.all);
  window_table_.set(requests_, pages.window);
  kv_[requests_++] = position + count;
  start_[requests_] = static_cast<int32_t>(tokens_);
}

void StepArrays::set_row(int32_t row, int32_t token, int32_t slot, int32_t position) {
  row_[static_cast<size_t>(row)] = token;
  slot_[static_cast<size_t>(row)] = slot;
  at_[static_cast<size_t>(row)] = position;
}

std::vector<Upload> StepArrays::uploads() {
  std::fill(start_.begin() + static_cast<long>(requests_), start_.end(), static_cast<int32_t>(tokens_));
  const auto all = [](void* to, const auto& v) { return Upload{to, v.data(), v.size() * sizeof(v[0])}; };
  std::vector<Upload> uploads = {all(inputs_.tokens.data(), token_),   all(inputs_.positions.data(), position_),
                                 all(inputs_.slots.data(), place_),    all(inputs_.query_start.data(), start_),
                                 all(inputs_.kv_len.data(), kv_),      table_.changes(),
                                 all(inputs_.logit_rows.data(), row_), all(slot_buffer_.data(), slot_),
                                 all(position_buffer_.data(), at_),    all(nonfinite_, no_flags_)};
  if (inputs_.window_slots.data() != nullptr) {
    uploads.push_back(all(inputs_.window_slots.data(), window_place_));
    uploads.push_back(window_table_.changes());
  }
  if (trees_) uploads.push_back(all(inputs_.tree_parents.data(), parent_));
  if (drawn_) uploads[0].drawn = inputs_.sampled.data<int32_t>();
  return uploads;
}

}  // namespace isobit
