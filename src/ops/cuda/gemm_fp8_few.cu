#include "ops/cuda/gemm_fp8_launch.cuh"

namespace isobit::cuda {

void launch_gemm_fp8_few(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                         cudaStream_t stream) {
  switch (plan.tile_index) {
    case 0:
      return launch_gemm_fp8_tile<0>(plan, maps, params, stream);
    case 1:
      return launch_gemm_fp8_tile<1>(plan, maps, params, stream);
    case 2:
      return launch_gemm_fp8_tile<2>(plan, maps, params, stream);
    case 3:
      return launch_gemm_fp8_tile<3>(plan, maps, params, stream);
    case 4:
      return launch_gemm_fp8_tile<4>(plan, maps, params, stream);
    default:
      throw_invalid("gemm_fp8: no kernel for few rows was compiled for the plan's tile");
  }
}

}  // namespace isobit::cuda
