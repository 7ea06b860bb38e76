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

// Slices of 64 of K as [slices, rows, 64]: one copy brings several, each a block of swizzled rows.
struct Slices {
  const uint16_t* base;
  int64_t rows, slices;
  int64_t row_bytes, slice_bytes;  // from one to the next
};
CUtensorMap slices_map(const Slices& s, int box_rows, int box_slices) {
  const uint64_t dims[3] = {64, static_cast<uint64_t>(s.rows), static_cast<uint64_t>(s.slices)};
  const uint64_t strides[2] = {static_cast<uint64_t>(s.row_bytes), static_cast<uint64_t>(s.slice_bytes)};
  const uint32_t box[3] = {64, static_cast<uint32_t>(box_rows), static_cast<uint32_t>(box_slices)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, s.base, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

// The output as the copy engine stores it: pieces of 16 rows × 128 bytes.
CUtensorMap out_map(const GemmParams& p) {
  const bool wide = p.epilogue == Epilogue::kStoreF32 || p.epilogue == Epilogue::kAddResidual;
  const uint64_t size = wide ? 4 : 2;
  const uint64_t dims[2] = {static_cast<uint64_t>(p.columns), static_cast<uint64_t>(p.m)};
  const uint64_t strides[1] = {dims[0] * size};
  const uint32_t box[2] = {static_cast<uint32_t>(128 / size), 16};
  return tensor_map(wide ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, p.out, dims, strides,
                    box, CU_TENSOR_MAP_SWIZZLE_128B);
}

bool gated(Epilogue e) { return e == Epilogue::kSiluMul || e == Epilogue::kGeluMul; }

}  // namespace

bool gemm_takes_norm(const RmsNormArgs& norm, const GemmArgs& gemm) {
  const auto aligned = [](const float* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return norm.count == gemm.m && norm.n == gemm.w->k() && norm.out == gemm.x && norm.out_type == gemm.type &&
         gemm.m <= kGemmNormedRows && norm.n <= kGemmNormedK && norm.n % 64 == 0 && aligned(norm.x) &&
         aligned(norm.weight);
}

bool rotates_neighbours(const RopeCacheArgs& rope) {
  return rope.cache.type == rope.type && rope.nonfinite != nullptr && rope.cache.head_dim % 2 == 0 &&
         rope.q_norm == nullptr && rope.k_norm == nullptr &&
         (rope.cos == nullptr || rope.layout == RopeLayout::kInterleaved);
}

bool gemm_takes_rope(const GemmArgs& gemm, const RopeCacheArgs& rope) {
  return rope.qkv == gemm.out && rope.count == gemm.m && gemm.m <= kGemmFewRows &&
         gemm.epilogue == Epilogue::kStoreF32 && rope.type == gemm.type && rotates_neighbours(rope);
}

GemmShape gemm_shape(const GemmArgs& a, const GemmNeighbours& with) {
  GemmShape s;
  s.m = a.m;
  s.n = CudaLinear::stored_rows(a.w->n(), a.w->form());
  s.k = a.w->k();
  s.gated = gated(a.epilogue);
  s.normed = with.norm != nullptr;
  s.rotated = with.rope != nullptr;
  s.chunked = numerics::gemm_chunk_k(a.w->n(), s.k) < s.k;
  return s;
}

void launch_gemm_planned(const GemmArgs& a, const GemmPlan& plan, const KernelContext& context,
                         const GemmNeighbours& with) {
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
  p.window = plan.window;
  p.x_rows = plan.x_rows;
  // Rows that do not exist are not asked for: 132 CTAs' zeros for them took as long as 16 steps of the chain a stage.
  p.x_load = plan.cluster_n == 1 ? static_cast<int>(std::min<int64_t>(a.m, plan.x_rows)) : plan.x_rows;
  p.few_rows = plan.few_rows;
  p.epilogue = a.epilogue;
  p.bias = a.bias;
  p.out = a.out;
  p.aligned = reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  if (with.norm != nullptr) {
    p.norm_x = with.norm->x;
    p.norm_rows = with.norm->rows;
    p.norm_weight = with.norm->weight;
    p.norm_n = static_cast<int>(with.norm->n);
    p.norm_eps = with.norm->eps;
  }
  p.rotate = with.rope != nullptr;
  if (p.rotate) p.rope = *with.rope;
  const int64_t slices = row_elements / 64;
  const CUtensorMap x = slices_map({a.x, a.m, slices, row_elements * 2, 128}, p.x_load / plan.cluster_n,
                                   p.x_load == plan.x_rows && plan.cluster_n == 1 ? plan.tile.slices : 1);
  const CUtensorMap weights = slices_map({w.data(), w.stored_rows(), slices, 128, w.stored_rows() * 128},
                                         plan.tile.tile_n / plan.cluster_m, plan.cluster_m == 1 ? plan.tile.slices : 1);
  const int64_t out_row_bytes =
      p.columns * int64_t{a.epilogue == Epilogue::kStoreF32 || a.epilogue == Epilogue::kAddResidual ? 4 : 2};
  p.staged = gemm_tile_stages(plan.tile.warpgroups, plan.tile.tile_n) && p.aligned && out_row_bytes % 16 == 0;
  const GemmMaps maps{x, weights, p.staged ? out_map(p) : CUtensorMap{}};
  (a.type == DType::kBF16 ? launch_gemm_bf16 : launch_gemm_f16)(plan, maps, p, context.stream);
}

namespace {

bool aligned(const GemmArgs& args) {
  const CudaLinear& w = as_cuda(args.w, "gemm");
  return w.k() == w.row_elements() && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
}

}  // namespace

void launch_gemm_between(const RmsNormArgs* norm, const GemmArgs& args, const RopeCacheArgs* rope,
                         const KernelContext& context) {
  if (args.m == 0) return;
  GemmNeighbours with;
  if (norm != nullptr && gemm_takes_norm(*norm, args)) {
    with.norm = norm;
  } else if (norm != nullptr) {
    launch_rms_norm(*norm, context);
  }
  if (rope != nullptr && aligned(args) && gemm_takes_rope(args, *rope)) with.rope = rope;
  if (aligned(args)) {
    launch_gemm_planned(args, gemm_plan(gemm_shape(args, with), context.sm_count), context, with);
  } else {
    launch_gemm(args, context);
  }
  if (rope != nullptr && with.rope == nullptr) launch_rope_cache(*rope, context);
}

void launch_gemm(const GemmArgs& args, const KernelContext& context) {
  if (args.m == 0) return;
  if (aligned(args)) {
    launch_gemm_planned(args, gemm_plan(gemm_shape(args), context.sm_count), context);
    return;
  }
  const CudaLinear& w = as_cuda(args.w, "gemm");
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
