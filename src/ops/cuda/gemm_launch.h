#pragma once
// From a plan's tile to the compiled kernel; included by one .cu a type.
#include "ops/cuda/gemm.h"
#include "ops/cuda/gemm_kernel.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {

template <int kWarpgroups, int kN, int kSlices, numerics::Operand kKind>
void launch_gemm_tile(const GemmPlan& plan, const GemmMaps& maps, const GemmParams& params, cudaStream_t stream) {
  auto* kernel = gemm_kernel<kWarpgroups, kN, kSlices, kKind>;
  // Always the same limit: a plan's own would take away what another thread's launch needs.
  allow_shared_memory("gemm", kernel, kGemmMostShared);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.ctas));
  shape.block = dim3(gemm_threads(kWarpgroups));
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster_m * plan.cluster_n));
  shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  launch("gemm", kernel, shape, stream, maps.x, maps.w, maps.out, params);
}

// The cases are gemm_tiles().
template <numerics::Operand kKind>
void launch_gemm_kind(const GemmPlan& plan, const GemmMaps& maps, const GemmParams& params, cudaStream_t stream) {
  const auto is = [&](int warpgroups, int n, int slices) { return plan.tile == GemmTile{warpgroups, n, slices}; };
  if (is(1, 8, 2)) return launch_gemm_tile<1, 8, 2, kKind>(plan, maps, params, stream);
  if (is(1, 16, 2)) return launch_gemm_tile<1, 16, 2, kKind>(plan, maps, params, stream);
  if (is(1, 24, 2)) return launch_gemm_tile<1, 24, 2, kKind>(plan, maps, params, stream);
  if (is(1, 32, 2)) return launch_gemm_tile<1, 32, 2, kKind>(plan, maps, params, stream);
  if (is(1, 48, 2)) return launch_gemm_tile<1, 48, 2, kKind>(plan, maps, params, stream);
  if (is(1, 16, 8)) return launch_gemm_tile<1, 16, 8, kKind>(plan, maps, params, stream);
  if (is(1, 24, 4)) return launch_gemm_tile<1, 24, 4, kKind>(plan, maps, params, stream);
  if (is(1, 32, 4)) return launch_gemm_tile<1, 32, 4, kKind>(plan, maps, params, stream);
  if (is(1, 48, 4)) return launch_gemm_tile<1, 48, 4, kKind>(plan, maps, params, stream);
  if (is(1, 56, 2)) return launch_gemm_tile<1, 56, 2, kKind>(plan, maps, params, stream);
  if (is(1, 64, 2)) return launch_gemm_tile<1, 64, 2, kKind>(plan, maps, params, stream);
  if (is(1, 112, 2)) return launch_gemm_tile<1, 112, 2, kKind>(plan, maps, params, stream);
  if (is(1, 128, 1)) return launch_gemm_tile<1, 128, 1, kKind>(plan, maps, params, stream);
  if (is(1, 128, 2)) return launch_gemm_tile<1, 128, 2, kKind>(plan, maps, params, stream);
  if (is(2, 128, 1)) return launch_gemm_tile<2, 128, 1, kKind>(plan, maps, params, stream);
  if (is(2, 256, 1)) return launch_gemm_tile<2, 256, 1, kKind>(plan, maps, params, stream);
  throw_invalid("gemm: no kernel was compiled for the plan's tile");
}

}  // namespace isobit::cuda
