#include "ops/cpu/huge_pages.h"

#include <sys/mman.h>

namespace isobit::cpu {

std::shared_ptr<std::byte> map_huge(size_t bytes) {
  const size_t mapped = bytes + kHugePage;
  if (mapped < bytes) return nullptr;
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  const size_t aligned = (reinterpret_cast<size_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);  // only a hint
  return {reinterpret_cast<std::byte*>(aligned), [p, mapped](std::byte*) { munmap(p, mapped); }};
}

}  // namespace isobit::cpu
