#pragma once
// The GEMM's launches below kernels.h: with a plan of the caller's choice, for tests and benchmarks.
#include <cuda.h>

#include "ops/cuda/gemm_plan.h"
#include "ops/cuda/kernels.h"

namespace isobit::cuda {

struct GemmParams;

GemmShape gemm_shape(const GemmArgs& args);
// x's rows stand CudaLinear::row_elements() apart and x is aligned to 16 bytes (launch_gemm sees to both).
void launch_gemm_planned(const GemmArgs& args, const GemmPlan& plan, const KernelContext& context);

// One file a type, so that they compile side by side.
void launch_gemm_bf16(const GemmPlan& plan, const CUtensorMap& x, const CUtensorMap& w, const GemmParams& params,
                      cudaStream_t stream);
void launch_gemm_f16(const GemmPlan& plan, const CUtensorMap& x, const CUtensorMap& w, const GemmParams& params,
                     cudaStream_t stream);
// to[r, 0..to_columns) = from[r, 0..columns) and zeros.
void launch_pad_rows(const uint16_t* from, int64_t rows, int64_t columns, uint16_t* to, int64_t to_columns,
                     cudaStream_t stream);

}  // namespace isobit::cuda
