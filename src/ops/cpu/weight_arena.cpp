#include "ops/cpu/weight_arena.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/error.h"

namespace isobit::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20, kPiece = size_t{64} << 20, kAlignment = 64;

constexpr size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

// Address space only; pages come with the first write.
std::shared_ptr<std::byte> map_piece(size_t size) {
  const size_t mapped = size + kHugePage;
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw fail(ErrorCode::kOutOfMemory, "cannot allocate {} MB for packed weights", size >> 20);
  auto* aligned = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<size_t>(p), kHugePage));
  madvise(aligned, size, MADV_HUGEPAGE);  // only a hint
  return {aligned, [p, mapped](std::byte*) { munmap(p, mapped); }};
}

}  // namespace

std::shared_ptr<std::byte> WeightArena::allocate(size_t bytes) {
  const size_t size = round_up(bytes, kAlignment);
  if (size > size_ - used_) {
    const size_t piece = round_up(std::max(size, kPiece), kHugePage);
    piece_ = map_piece(piece);
    size_ = piece;
    used_ = 0;
  }
  std::byte* p = piece_.get() + used_;
  used_ += size;
  return {piece_, p};
}

}  // namespace isobit::cpu
