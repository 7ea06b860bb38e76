#include "ops/cpu/gemm.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "ops/cpu/gemm_kernel.h"

namespace isobit::cpu {
namespace {

// Memory that grows and is not cleared.
template <typename T>
class Block {
 public:
  T* at_least(size_t size) {
    if (size > size_) {
      data_ = std::make_unique_for_overwrite<T[]>(size);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  size_t size_ = 0;
};

// Kept from call to call by the calling thread: fresh pages for every GEMM would cost more than some GEMMs do.
struct Arena {
  Block<float> value;
  Block<uint8_t> below, general;
  Block<uint32_t> pairs;
  std::vector<std::unique_ptr<GemmScratch>> scratch;  // by the pool's thread

  PreparedRows rows(int64_t m, int64_t padded) {
    const auto size = static_cast<size_t>(m * padded);
    uint32_t* single = m == 1 ? pairs.at_least(size / 2) : nullptr;
    return {padded, value.at_least(size), below.at_least(size), single, general.at_least(static_cast<size_t>(m))};
  }
};

}  // namespace

void gemm(const Cpu& cpu, const GemmArgs& a) {
  if (a.m == 0) return;
  const auto& w = dynamic_cast<const PackedLinear&>(*a.w);
  static thread_local Arena arena;
  if (arena.scratch.size() < static_cast<size_t>(cpu.pool.size()))
    arena.scratch.resize(static_cast<size_t>(cpu.pool.size()));
  const GemmJob job{&a, &w, arena.rows(a.m, w.groups() * kGroup)};
  const PrepareFn prepare = prepare_row_for(cpu.simd);
  const PanelFn panel = gemm_panel_for(cpu.simd);
  if (a.m == 1) {
    prepare(job, 0);
  } else {
    cpu.pool.parallel_for((a.m + 7) / 8, [&](int, int64_t i) {
      for (int64_t r = 8 * i; r < std::min(a.m, 8 * i + 8); r++) prepare(job, r);
    });
  }
  auto& scratch = arena.scratch;  // a lambda on another thread would see that thread's arena
  const int64_t panels = static_cast<int64_t>(w.panels().size()) / (w.form() == LinearForm::kGated ? 2 : 1);
  const int64_t blocks = (a.m + kRowBlock - 1) / kRowBlock;
  cpu.pool.parallel_for(blocks * panels, [&](int thread, int64_t i) {
    auto& own = scratch[static_cast<size_t>(thread)];
    if (own == nullptr) own = std::make_unique_for_overwrite<GemmScratch>();
    const int64_t begin = i / panels * kRowBlock;
    panel(job, begin, std::min(a.m, begin + kRowBlock), i % panels, *own);
  });
}

}  // namespace isobit::cpu
