#include "cache/page_pool.h"

#include "base/error.h"

namespace isobit {

PagePool::PagePool(int32_t pages) {
  require(pages > 0, "page pool: {} pages; at least 1 is needed", pages);
  references_.assign(static_cast<size_t>(pages), 0);
  free_.reserve(static_cast<size_t>(pages));
  for (PageId p = pages - 1; p >= 0; p--) free_.push_back(p);
}

void PagePool::check(PageId page) const {
  if (page < 0 || page >= total() || references_[static_cast<size_t>(page)] <= 0) {
    throw fail(ErrorCode::kInternal, "page pool: page {} of {} is not in use", page, total());
  }
}

PageId PagePool::allocate() {
  if (free_.empty()) return -1;
  const PageId page = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::retain(PageId page) {
  check(page);
  references_[static_cast<size_t>(page)]++;
}

void PagePool::release(PageId page) {
  check(page);
  if (--references_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

int32_t PagePool::references(PageId page) const {
  require(page >= 0 && page < total(), "page pool: page {} is outside [0, {})", page, total());
  return references_[static_cast<size_t>(page)];
}

}  // namespace isobit
