#pragma once
// The FP8 GEMM on the GPU. launch_gemm_fp8 chooses its plan; tests and benchmarks may bring their own.
#include <cuda.h>

#include "ops/cuda/gemm_fp8_params.h"
#include "ops/cuda/gemm_fp8_plan.h"
#include "ops/cuda/kernels.h"
#include "ops/gemm_fp8.h"

namespace isobit::cuda {

void launch_gemm_fp8(const GemmFp8Args& args, const KernelContext& context);
void launch_gemm_fp8_planned(const GemmFp8Args& args, const GemmFp8Plan& plan, const KernelContext& context);

void launch_grouped_gemm_fp8(const GroupedGemmFp8Args& args, const KernelContext& context);
void launch_grouped_gemm_fp8_planned(const GroupedGemmFp8Args& args, const GemmFp8Plan& plan,
                                     const KernelContext& context);

struct GemmFp8Maps {
  CUtensorMap x, w, scale, out;
};
// The compiled kernels, in files of a few each so that they compile side by side.
void launch_gemm_fp8_few(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                         cudaStream_t stream);
void launch_gemm_fp8_many(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                          cudaStream_t stream);

void launch_gemm_fp8_grouped(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                             cudaStream_t stream);

void launch_quantize_fp8(const QuantizeFp8Args& args, const KernelContext& context);  // quantize_fp8.cu
void launch_gate(const GateArgs& args, const KernelContext& context);                 // quantize_fp8.cu

}  // namespace isobit::cuda
