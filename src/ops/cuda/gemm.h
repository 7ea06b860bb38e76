#pragma once
// The GEMM's launches below kernels.h: with a plan of the caller's choice, for tests and benchmarks.
#include <cuda.h>

#include "ops/cuda/gemm_plan.h"
#include "ops/cuda/kernels.h"

namespace isobit::cuda {

struct GemmParams;

// What a GEMM may take on of its neighbours, each null or an operator that its kernel can do as well: norm.out is the
// GEMM's x and then not written; rope.qkv is its out and then not written.
struct GemmNeighbours {
  const RmsNormArgs* norm = nullptr;
  const RopeCacheArgs* rope = nullptr;
};
bool gemm_takes_norm(const RmsNormArgs& norm, const GemmArgs& gemm);
// A GEMM that holds neighbouring columns of q, k and v can do all that rope_cache does.
bool rotates_neighbours(const RopeCacheArgs& rope);
bool gemm_takes_rope(const GemmArgs& gemm, const RopeCacheArgs& rope);

GemmShape gemm_shape(const GemmArgs& args, const GemmNeighbours& with = {});
// x's rows stand CudaLinear::row_elements() apart and x is aligned to 16 bytes (launch_gemm sees to both).
void launch_gemm_planned(const GemmArgs& args, const GemmPlan& plan, const KernelContext& context,
                         const GemmNeighbours& with = {});

// One file a type, so that they compile side by side.
struct GemmMaps {
  CUtensorMap x, w, out;
};
void launch_gemm_bf16(const GemmPlan& plan, const GemmMaps& maps, const GemmParams& params, cudaStream_t stream);
void launch_gemm_f16(const GemmPlan& plan, const GemmMaps& maps, const GemmParams& params, cudaStream_t stream);
// to[r, 0..to_columns) = from[r, 0..columns) and zeros.
void launch_pad_rows(const uint16_t* from, int64_t rows, int64_t columns, uint16_t* to, int64_t to_columns,
                     cudaStream_t stream);

}  // namespace isobit::cuda
