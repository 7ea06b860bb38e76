#include "ops/cuda/gemm_fp8_launch.cuh"

namespace isobit::cuda {

void launch_gemm_fp8_grouped(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                             cudaStream_t stream) {
  switch (plan.tile_index) {
    case kGroupedFewTile:
      return launch_gemm_fp8_tile<kGroupedFewTile, true>(plan, maps, params, stream);
    case kGroupedManyTile:
      return launch_gemm_fp8_tile<kGroupedManyTile, true>(plan, maps, params, stream);
    default:
      throw_invalid("grouped_gemm_fp8: no kernel was compiled for the plan's tile");
  }
}

}  // namespace isobit::cuda
