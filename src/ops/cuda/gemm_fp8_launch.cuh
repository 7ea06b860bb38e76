#pragma once
// From a plan's tile to the compiled kernel.
#include "ops/cuda/gemm_fp8.h"
#include "ops/cuda/gemm_fp8_kernel.cuh"
#include "ops/cuda/launch.h"

namespace isobit::cuda {

template <int kIndex, bool kGrouped = false>
void launch_gemm_fp8_tile(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& params,
                          cudaStream_t stream) {
  auto* kernel = gemm_fp8_kernel<kIndex, kGrouped>;
  allow_shared_memory("gemm_fp8", kernel, static_cast<size_t>(plan.shared_bytes));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.ctas));
  shape.block = dim3(static_cast<unsigned>(kGemmFp8Tiles[kIndex].threads()));
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster_m * plan.cluster_n));
  shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  launch("gemm_fp8", kernel, shape, stream, maps.x, maps.w, maps.scale, maps.out, params);
}

}  // namespace isobit::cuda
