#pragma once
// Reference-counted pages of the KV cache. The pool knows page numbers only; the memory is KvPages'.
#include <cstdint>
#include <span>
#include <vector>

namespace isobit {

using PageId = int32_t;

// Pages that hold so many tokens; the last one may not be full.
constexpr int32_t pages_for(int64_t tokens, int32_t page_size) {
  return static_cast<int32_t>((tokens + page_size - 1) / page_size);
}

// Where a sequence's index-th token is in a layer's cache: page·page_size + offset.
constexpr int64_t cache_place(std::span<const PageId> pages, int32_t index, int32_t page_size) {
  return int64_t{pages[static_cast<size_t>(index / page_size)]} * page_size + index % page_size;
}

class PagePool {
 public:
  explicit PagePool(int32_t pages);

  // A free page with one reference, or -1 when none is free.
  PageId allocate();
  void retain(PageId page);
  // Drops a reference; the last one frees the page.
  void release(PageId page);

  int32_t references(PageId page) const;
  int32_t total() const { return static_cast<int32_t>(references_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }

 private:
  void check(PageId page) const;
  std::vector<int32_t> references_;
  std::vector<PageId> free_;  // a stack: the page freed last is given out first, while it is warm
};

}  // namespace isobit
