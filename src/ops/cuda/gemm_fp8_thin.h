#pragma once
// The FP8 GEMM of a few rows (rule N16): w's bytes bound its time, so its rows are the products' M side, 64 at once,
// and K is split over the CTAs of a cluster, which pass raw p on and fold them in order.
#include "ops/cuda/gemm_fp8_plan.h"
#include "ops/cuda/kernels.h"
#include "ops/gemm_fp8.h"
#include "ops/linear_fp8.h"

namespace isobit::cuda {

// False, and nothing launched, where the kernel does not take the sizes.
bool launch_gemm_fp8_thin(const GemmFp8Args& args, const KernelContext& context);
// Of x as `source` describes it, quantised by the kernel: one row of 16-bit values, or one behind RMSNorm. False where
// the kernel cannot.
bool launch_quantized_gemm_fp8(const QuantizeFp8Args& source, const GemmFp8Args& args, const Fp8After& after,
                               const KernelContext& context);
void launch_gemm_fp8_thin_planned(const GemmFp8Args& args, const GemmFp8ThinPlan& plan, const KernelContext& context);

}  // namespace isobit::cuda
