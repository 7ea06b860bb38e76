#include "ops/cpu/gemm.h"

#include <algorithm>

#include "ops/cpu/gemm_kernel.h"

namespace isobit::cpu {
namespace {

// Memory of the prepared rows.
struct Arena {
  std::vector<float> value;
  std::vector<uint8_t> below, general;
  std::vector<uint32_t> pairs;

  PreparedRows rows(int64_t m, int64_t padded) {
    const auto size = static_cast<size_t>(m * padded);
    value.resize(size);
    below.resize(size);
    pairs.resize(size / 2);
    general.resize(static_cast<size_t>(m));
    return {padded, value.data(), below.data(), pairs.data(), general.data()};
  }
};

}  // namespace

void gemm(const Cpu& cpu, const GemmArgs& a) {
  if (a.m == 0) return;
  const auto& w = dynamic_cast<const PackedLinear&>(*a.w);
  Arena arena;
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
  std::vector<std::unique_ptr<GemmScratch>> scratch(static_cast<size_t>(cpu.pool.size()));
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
