#pragma once
// A weight matrix in f16 for the CPU's GEMM: rows (outputs) go in panels of 16, so that SIMD lanes are outputs; a panel
// is [k][16] words, K filled to a multiple of 16 and rows to 16 with zeros.
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/packed_linear.h"
#include "ops/cpu/weight_arena.h"
#include "ops/linear.h"

namespace isobit::cpu {

class F16Linear final : public Linear {
 public:
  struct Panel {
    int64_t row = 0;      // the first
    int rows = 0;         // 1 to kPanel
    bool finite = false;  // all of them; the vector kernel takes no others
    const uint16_t* words = nullptr;
  };

  F16Linear(int64_t n, int64_t k, LinearForm form) : Linear(n, k, form) {}
  size_t bytes() const override { return panels_.size() * static_cast<size_t>(padded() * kPanel) * sizeof(uint16_t); }
  int64_t padded() const { return (k() + 15) / 16 * 16; }
  // Of a gated pair: the gate's, then as many of the up projection's.
  std::span<const Panel> panels() const { return panels_; }
  // f16 bits of one row: out[k].
  void row(int64_t r, uint16_t* out) const;

 private:
  friend std::unique_ptr<F16Linear> load_f16(ThreadPool& pool, std::span<const WeightPart> parts, LinearForm form,
                                             WeightArena& arena);
  std::shared_ptr<std::byte> data_;
  std::vector<Panel> panels_;
};

// Rounds weights of other types to f16. Parts as for Backend::load_linear; their bytes are not needed afterwards.
std::unique_ptr<F16Linear> load_f16(ThreadPool& pool, std::span<const WeightPart> parts, LinearForm form,
                                    WeightArena& arena);

void gemm_f16(const Cpu& cpu, const GemmArgs& a);

}  // namespace isobit::cpu
