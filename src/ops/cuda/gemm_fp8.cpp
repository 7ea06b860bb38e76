#include "ops/cuda/gemm_fp8.h"

#include <algorithm>

#include "ops/cuda/device.h"
#include "ops/cuda/gemm_fp8_thin.h"

namespace isobit::cuda {
namespace {

constexpr int kFirstOfMany = 5;  // tiles from here on are in gemm_fp8_many.cu

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Rows of blocks of 128 as [blocks, rows, 128]: one copy brings several blocks.
CUtensorMap blocks_map(const uint8_t* base, int64_t rows, int64_t row_bytes, int box_rows, int box_blocks) {
  const uint64_t dims[3] = {128, static_cast<uint64_t>(rows), static_cast<uint64_t>(row_bytes / 128)};
  const uint64_t strides[2] = {static_cast<uint64_t>(row_bytes), 128};
  const uint32_t box[3] = {128, static_cast<uint32_t>(box_rows), static_cast<uint32_t>(box_blocks)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, base, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

// w in groups of 32 rows, of which row 8j + 2q + i arrives as 8q + 2j + i.
CUtensorMap permuted_map(const uint8_t* base, int64_t rows, int64_t row_bytes, int box_rows) {
  const auto row = static_cast<uint64_t>(row_bytes);
  const uint64_t dims[5] = {row, 2, 4, 4, static_cast<uint64_t>(ceil_div(rows, 32))};
  const uint64_t strides[4] = {row, 8 * row, 2 * row, 32 * row};
  const uint32_t box[5] = {128, 2, 4, 4, static_cast<uint32_t>(box_rows / 32)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, base, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap scales_map(const float* base, int64_t m, int64_t k, int64_t stride, int box_rows, int box_blocks) {
  const uint64_t dims[2] = {static_cast<uint64_t>(m), static_cast<uint64_t>(fp8_blocks(k))};
  const uint64_t strides[1] = {static_cast<uint64_t>(stride) * 4};
  const uint32_t box[2] = {static_cast<uint32_t>(box_rows), static_cast<uint32_t>(box_blocks)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, base, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_NONE);
}

// Boxes of a warpgroup's 64 rows × 64 columns of 16 bits.
CUtensorMap out_map(const GemmFp8Args& a) {
  MatrixMap m;
  m.base = a.out;
  m.rows = a.m;
  m.columns = a.n;
  m.row_bytes = a.row_stride() * 2;
  m.box_rows = 64;
  m.box_columns = 64;
  return matrix_map(m);
}

GemmFp8Out out_type(DType t) {
  return t == DType::kBF16 ? GemmFp8Out::kBF16 : t == DType::kF16 ? GemmFp8Out::kF16 : GemmFp8Out::kF32;
}

// What dense and grouped problems have in common. Args: GemmFp8Args or GroupedGemmFp8Args.
template <typename Args>
GemmFp8Params params_of(const Args& a, const GemmFp8Plan& plan, int64_t out_stride) {
  GemmFp8Params p;
  p.m = static_cast<int>(a.m);
  p.columns = static_cast<int>(a.n);
  p.k_blocks = static_cast<int>(fp8_blocks(a.k));
  p.n_blocks = static_cast<int>(fp8_blocks(a.n));
  p.k_stages = ceil_div(p.k_blocks, plan.tile().slices);
  p.n_tiles = plan.n_tiles;
  p.cluster_m = plan.cluster_m;
  p.cluster_n = plan.cluster_n;
  p.stages = plan.stages;
  p.tile_m = plan.tile_m;
  p.scale_rows = plan.scale_rows;
  p.x_load = plan.cluster_n > 1 ? plan.tile_m : static_cast<int>(std::min<int64_t>(a.m, plan.tile_m));
  p.out_type = out_type(a.out_type);
  const int64_t element = a.out_type == DType::kF32 ? 4 : 2;
  const auto out = reinterpret_cast<uintptr_t>(a.out);
  p.out_stride = out_stride;
  p.even = out_stride % 2 == 0 && out % static_cast<uintptr_t>(2 * element) == 0;
  p.wide = out_stride * element % 16 == 0 && out % 16 == 0;
  p.w_scale = a.w_scale;
  p.out = a.out;
  return p;
}

template <typename Args>
GemmFp8Maps maps_of(const Args& a, const GemmFp8Plan& plan, int x_load, int64_t w_rows) {
  const GemmFp8Tile& tile = plan.tile();
  const int64_t row_bytes = fp8_row_bytes(a.k);
  const int share = tile.tile_n / plan.cluster_m;
  GemmFp8Maps maps = {};
  maps.x = blocks_map(a.x, a.m, row_bytes, x_load / plan.cluster_n, x_load == plan.tile_m ? tile.slices : 1);
  maps.w = tile.permuted ? permuted_map(a.w, w_rows, row_bytes, share)
                         : blocks_map(a.w, w_rows, row_bytes, share, plan.cluster_m == 1 ? tile.slices : 1);
  maps.scale = scales_map(a.x_scale, a.m, a.k, a.x_scale_stride, plan.scale_rows, tile.slices);
  return maps;
}

void launch_tile(const GemmFp8Plan& plan, const GemmFp8Maps& maps, const GemmFp8Params& p, cudaStream_t stream) {
  (plan.tile_index < kFirstOfMany ? launch_gemm_fp8_few : launch_gemm_fp8_many)(plan, maps, p, stream);
}

}  // namespace

void launch_gemm_fp8_planned(const GemmFp8Args& a, const GemmFp8Plan& plan, const KernelContext& context) {
  GemmFp8Params p = params_of(a, plan, a.row_stride());
  p.m_clusters = ceil_div(plan.m_tiles, plan.cluster_m);
  p.group_m = plan.group_m;
  p.add = a.add;
  p.bias = a.bias;
  p.staged = plan.staged && p.wide && a.out_type != DType::kF32 && a.bias == nullptr;
  GemmFp8Maps maps = maps_of(a, plan, p.x_load, a.n);
  if (p.staged) maps.out = out_map(a);
  launch_tile(plan, maps, p, context.stream);
}

void launch_gemm_fp8(const GemmFp8Args& args, const KernelContext& context) {
  if (args.m == 0 || launch_gemm_fp8_thin(args, context)) return;
  launch_gemm_fp8_planned(args, gemm_fp8_plan({args.m, args.n, args.k}, context.sm_count), context);
}

void launch_grouped_gemm_fp8_planned(const GroupedGemmFp8Args& a, const GemmFp8Plan& plan,
                                     const KernelContext& context) {
  GemmFp8Params p = params_of(a, plan, a.n);
  p.table = {static_cast<int>(a.experts), static_cast<int>(a.capacity), p.m, a.rows};
  p.expert_rows = static_cast<int>(fp8_stored_rows(a.n));
  p.w_once = plan.tile().warpgroups == 1;
  p.tickets = context.counters;
  launch_gemm_fp8_grouped(plan, maps_of(a, plan, p.x_load, a.experts * p.expert_rows), p, context.stream);
}

void launch_grouped_gemm_fp8(const GroupedGemmFp8Args& a, const KernelContext& context) {
  if (a.m == 0) return;
  const int64_t expected = a.capacity == 0     ? (a.m + a.experts - 1) / a.experts
                           : a.expected_m == 0 ? a.capacity
                                               : a.expected_m;
  launch_grouped_gemm_fp8_planned(a, grouped_gemm_fp8_plan({a.m, a.n, a.k}, a.experts, expected, context.sm_count),
                                  context);
}

}  // namespace isobit::cuda
