#include "ops/cuda/gemm.h"

#include <algorithm>

#include "base/error.h"
#include "numerics/gemm.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm_params.h"
#include "ops/cuda/linear_cuda.h"

namespace isobit::cuda {
namespace {

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Rows of whole slices of 64 as [slices, rows, 64]: one copy brings several slices, each a block of swizzled rows.
CUtensorMap slices_map(const uint16_t* base, int64_t rows, int64_t row_elements, int box_rows, int box_slices) {
  const uint64_t dims[3] = {64, static_cast<uint64_t>(rows), static_cast<uint64_t>(row_elements / 64)};
  const uint64_t strides[2] = {static_cast<uint64_t>(row_elements) * 2, 128};
  const uint32_t box[3] = {64, static_cast<uint32_t>(box_rows), static_cast<uint32_t>(box_slices)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, base, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

bool gated(Epilogue e) { return e == Epilogue::kSiluMul || e == Epilogue::kGeluMul; }

}  // namespace

GemmShape gemm_shape(const GemmArgs& a) {
  GemmShape s;
  s.m = a.m;
  s.n = CudaLinear::stored_rows(a.w->n(), a.w->form());
  s.k = a.w->k();
  s.gated = gated(a.epilogue);
  s.chunked = numerics::gemm_chunk_k(a.w->n(), s.k) < s.k;
  return s;
}

void launch_gemm_planned(const GemmArgs& a, const GemmPlan& plan, const KernelContext& context) {
  const CudaLinear& w = as_cuda(a.w, "gemm");
  if (w.type() != a.type) {
    throw fail(ErrorCode::kInvalidArgument, "gemm: the weights are {}, the activations {}", dtype_info(w.type()).name,
               dtype_info(a.type).name);
  }
  const int64_t row_elements = w.row_elements();
  const int slice_k = 64 * plan.tile.slices;
  GemmParams p;
  p.m = static_cast<int>(a.m);
  p.columns = static_cast<int>(w.outputs());
  p.k_stages = ceil_div(w.k(), slice_k);
  p.chunk_stages = ceil_div(numerics::gemm_chunk_k(w.n(), w.k()), slice_k);
  p.m_clusters = ceil_div(plan.m_tiles, plan.cluster_m);
  p.n_clusters = ceil_div(plan.n_tiles, plan.cluster_n);
  p.group_m = plan.group_m;
  p.cluster_m = plan.cluster_m;
  p.cluster_n = plan.cluster_n;
  p.stages = plan.stages;
  p.x_rows = plan.x_rows;
  p.epilogue = a.epilogue;
  p.bias = a.bias;
  p.out = a.out;
  p.aligned = reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  const CUtensorMap x =
      slices_map(a.x, a.m, row_elements, plan.x_rows / plan.cluster_n, plan.cluster_n == 1 ? plan.tile.slices : 1);
  const CUtensorMap weights = slices_map(w.data(), w.stored_rows(), row_elements, plan.tile.tile_n / plan.cluster_m,
                                         plan.cluster_m == 1 ? plan.tile.slices : 1);
  (a.type == DType::kBF16 ? launch_gemm_bf16 : launch_gemm_f16)(plan, x, weights, p, context.stream);
}

void launch_gemm(const GemmArgs& args, const KernelContext& context) {
  if (args.m == 0) return;
  const CudaLinear& w = as_cuda(args.w, "gemm");
  const bool aligned = w.k() == w.row_elements() && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  if (aligned) {
    launch_gemm_planned(args, gemm_plan(gemm_shape(args), context.sm_count), context);
    return;
  }
  // The copy engine is told of rows of whole slices: x goes through the workspace, as many rows at a time as it holds.
  const int64_t row_bytes = w.row_elements() * 2;
  const int64_t rows = static_cast<int64_t>(context.workspace_bytes) / row_bytes;
  if (rows == 0) {
    throw fail(ErrorCode::kOutOfMemory, "gemm: K = {} needs a workspace of {} bytes, there are {}; enlarge it", w.k(),
               row_bytes, context.workspace_bytes);
  }
  const bool wide = args.epilogue == Epilogue::kStoreF32 || args.epilogue == Epilogue::kAddResidual;
  for (int64_t first = 0; first < args.m; first += rows) {
    GemmArgs part = args;
    part.m = std::min(rows, args.m - first);
    auto* padded = static_cast<uint16_t*>(context.workspace);
    launch_pad_rows(args.x + first * w.k(), part.m, w.k(), padded, w.row_elements(), context.stream);
    part.x = padded;
    part.out = static_cast<std::byte*>(args.out) + first * w.outputs() * (wide ? 4 : 2);
    launch_gemm_planned(part, gemm_plan(gemm_shape(part), context.sm_count), context);
  }
}

}  // namespace isobit::cuda
