#include "ops/cuda/gemm_fp8_launch.cuh"

namespace isobit::cuda {

void launch_gemm_fp8_many(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                          cudaStream_t stream) {
  switch (plan.tile_index) {
    case 5:
      return launch_gemm_fp8_tile<5>(plan, maps, params, stream);
    case 6:
      return launch_gemm_fp8_tile<6>(plan, maps, params, stream);
    case 7:
      return launch_gemm_fp8_tile<7>(plan, maps, params, stream);
    case 8:
      return launch_gemm_fp8_tile<8>(plan, maps, params, stream);
    default:
      throw_invalid("gemm_fp8: no kernel for many rows was compiled for the plan's tile");
  }
}

}  // namespace isobit::cuda
