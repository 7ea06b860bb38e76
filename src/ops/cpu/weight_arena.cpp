#include "ops/cpu/weight_arena.h"

#include <algorithm>

#include "base/error.h"
#include "ops/cpu/huge_pages.h"

namespace isobit::cpu {
namespace {

constexpr size_t kPiece = size_t{64} << 20, kAlignment = 64;

constexpr size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

}  // namespace

std::shared_ptr<std::byte> WeightArena::allocate(size_t bytes) {
  const size_t size = round_up(bytes, kAlignment);
  if (size > size_ - used_) {
    const size_t piece = round_up(std::max(size, kPiece), kHugePage);
    piece_ = map_huge(piece);
    if (piece_ == nullptr) throw fail(ErrorCode::kOutOfMemory, "cannot allocate {} MB for packed weights", piece >> 20);
    size_ = piece;
    used_ = 0;
  }
  std::byte* p = piece_.get() + used_;
  used_ += size;
  return {piece_, p};
}

}  // namespace isobit::cpu
