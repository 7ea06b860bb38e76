#include "ops/cuda/gemm_launch.h"

namespace isobit::cuda {

void launch_gemm_bf16(const GemmPlan& plan, const GemmMaps& maps, const GemmParams& params, cudaStream_t stream) {
  launch_gemm_kind<numerics::Operand::kBF16>(plan, maps, params, stream);
}

}  // namespace isobit::cuda
