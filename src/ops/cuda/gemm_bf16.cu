#include "ops/cuda/gemm_launch.h"

namespace isobit::cuda {

void launch_gemm_bf16(const GemmPlan& plan, const CUtensorMap& x, const CUtensorMap& w, const GemmParams& params,
                      cudaStream_t stream) {
  launch_gemm_kind<numerics::Operand::kBF16>(plan, x, w, params, stream);
}

}  // namespace isobit::cuda
