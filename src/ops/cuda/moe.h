#pragma once
// A mixture of experts on the GPU: experts' GEMMs in bf16 and f16 (gemm_grouped.cu) and the weighted sum behind them
// (combine.cu). The block-scaled GEMMs are in gemm_fp8.h.
#include "ops/cuda/kernels.h"
#include "ops/moe.h"

namespace isobit::cuda {

// How a grouped GEMM is cut into tiles. It decides speed alone (docs/numerics.md, N22).
struct GroupedGemmPlan {
  bool many = false;                      // 128 × 256 by two warpgroups, else 64 × 128 by one
  int tile_m = 0;                         // rows of x a CTA loads: a multiple of 8, at most 128 or 64
  int cluster = 1;                        // CTAs along N that share x's tile
  int n_tiles = 0, stages = 0, ctas = 0;  // n_tiles: in clusters
  int shared_bytes = 0;
};
// True where the tile can serve the matrix: N7's narrow ones need a second set of accumulators.
bool grouped_gemm_fits(const GroupedGemmArgs& args, bool many);
// cluster: 1, or 2 where tile_m is a multiple of 16.
GroupedGemmPlan grouped_gemm_plan_for(const GroupedGemmArgs& args, bool many, int tile_m, int cluster, int sm_count);
GroupedGemmPlan grouped_gemm_plan(const GroupedGemmArgs& args, int sm_count);

void launch_grouped_gemm(const GroupedGemmArgs& args, const KernelContext& context);
void launch_grouped_gemm_planned(const GroupedGemmArgs& args, const GroupedGemmPlan& plan,
                                 const KernelContext& context);
void launch_combine(const CombineArgs& args, const KernelContext& context);

}  // namespace isobit::cuda
