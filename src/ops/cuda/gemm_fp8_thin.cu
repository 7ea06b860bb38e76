// The FP8 GEMM of at most eight rows of x. A CTA has 64 rows of w and a share of K; w comes through a ring of
// shared-memory stages filled by the copy engine, asked for before the kernel waits for its predecessor. x's share
// stands in shared memory whole. One warpgroup multiplies: w is the wgmma's M side, x its N side, so a product of 64 ×
// 8 × 128 takes four accumulators a thread. Alone, a CTA folds as it multiplies and walks over tiles. In a cluster
// every CTA sends its p, and the products of scales, to those that fold the rows; each folds 64/C rows, all of K in
// order. One row of x may come as it is, or from before its RMSNorm: each CTA then quantises its share itself. Gate and
// up of one row may leave as their gated product: a tile then has 32 rows of each.
#include <cuda.h>

#include "ops/cuda/gemm.h"
#include "ops/cuda/gemm_fp8_thin.cuh"
#include "ops/cuda/gemm_fp8_thin.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/warp.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rope_device.h"

namespace isobit::cuda {
namespace {

using namespace hopper;
using namespace thin;

// Where x comes from: quantised, or one row that the kernel quantises.
enum class Source : int { kQuantised, kRow, kNormedRow };

struct ThinParams {
  Source source = Source::kQuantised;
  const void* raw = nullptr;  // the row: f32 before a norm, else 16 bits
  int raw_n = 0;
  const float* norm_weight = nullptr;
  float eps = 0.0f;
  DType round_type = DType::kBF16;
  const uint8_t* x = nullptr;
  const float* x_scale = nullptr;
  int64_t x_row_bytes = 0, x_scale_stride = 0;
  const float* w_scale = nullptr;
  int m = 0, columns = 0, k_blocks = 0;
  int tiles = 0, cluster = 1, stages = 0, rank_blocks = 0;
  DType out_type = DType::kBF16;
  bool add = false;
  GatedKind gated = GatedKind::kNone;  // then columns are of the product, and up's rows of w stand behind as many
  int64_t out_stride = 0;
  const float* bias = nullptr;
  void* out = nullptr;
  bool rotate = false;  // the outputs are q, k and v, and go where rope_cache would put them
  RopeCacheArgs rope;
};

constexpr int kMostResident = 3, kFusedResident = 2;  // CTAs an SM, by their registers
constexpr int kPairRows = 32;                         // of gate and of up in a tile

// One output: column `column` of w's rows, of x's row `row`.
__device__ void store_one(const ThinParams& p, int row, int column, float v) {
  if (column >= p.columns || row >= p.m) return;
  const int64_t at = row * p.out_stride + column;
  if (p.bias != nullptr) v = numerics::fadd(v, __ldg(p.bias + column));
  if (p.out_type == DType::kF32) {
    float* out = static_cast<float*>(p.out) + at;
    *out = p.add ? numerics::fadd(*out, v) : v;
    return;
  }
  static_cast<uint16_t*>(p.out)[at] =
      static_cast<uint16_t>(p.out_type == DType::kF16 ? pack_f16(v, v) : pack_bf16(v, v));
}

// A CTA's share of K, and x's there in shared memory, as x_descriptor has it; scales [block][8].
struct XShare {
  uint8_t* x;
  float* scale;
  int first, count;  // blocks
};

// Where a thread stands in x's share: at 16 bytes of a block of a row.
struct XPlace {
  int row = 0, block;

  __device__ explicit XPlace(int blocks) : block(static_cast<int>(threadIdx.x) / 8) { wrap(blocks); }
  __device__ void step(int blocks) {
    block += kMakers / 8;
    wrap(blocks);
  }

 private:
  __device__ void wrap(int blocks) {
    while (block >= blocks) block -= blocks, row++;
  }
};

__device__ void copy_x(const ThinParams& p, const XShare& share) {
  constexpr int kAtOnce = 4;
  const int chunk = static_cast<int>(threadIdx.x) % 8;
  XPlace next(share.count);
  wait_for_predecessors();
  while (next.row < p.m) {
    uint4 v[kAtOnce];
    float scale[kAtOnce];
    XPlace at = next;
#pragma unroll
    for (int i = 0; i < kAtOnce && at.row < p.m; i++, at.step(share.count)) {
      const int64_t block = share.first + at.block;
      v[i] = *reinterpret_cast<const uint4*>(p.x + at.row * p.x_row_bytes + block * 128 + chunk * 16);
      if (chunk == 0) scale[i] = p.x_scale[block * p.x_scale_stride + at.row];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce && next.row < p.m; i++, next.step(share.count)) {
      *reinterpret_cast<uint4*>(share.x + ((next.block * 8 + chunk) * p.m + next.row) * 16) = v[i];
      if (chunk == 0) share.scale[next.block * kColumns + next.row] = scale[i];
    }
  }
}

// Waits for the kernels before, which make x.
template <bool kFused>
__device__ void make_x(const ThinParams& p, const XShare& share, float* squares) {
  if constexpr (!kFused) return copy_x(p, share);
  const RowPlace place{share.x, share.scale, kColumns, share.first, share.count};
  if (p.source == Source::kNormedRow) {
    NormedRow row;
    row.ask(p.norm_weight, p.raw_n);
    wait_for_predecessors();
    row.quantize(static_cast<const float*>(p.raw), p.raw_n, p.eps, p.round_type == DType::kF16, place, squares);
  } else {
    wait_for_predecessors();
    quantize_row(static_cast<const uint16_t*>(p.raw), p.raw_n, p.round_type, place);
  }
}

// The gated product of a tile: the upper two warps have up's rows and lend them. The multiplying warpgroup calls.
__device__ void store_gated(const ThinParams& p, int tile, int row, const float (&acc)[4]) {
  __shared__ float up[kPairRows];
  const bool first = threadIdx.x % 4 == 0;  // of a quad: has x's only row
  if (first && row >= kPairRows) up[row - kPairRows] = acc[0], up[row - kPairRows + 8] = acc[2];
  named_barrier_sync(2, 128);
  if (!first || row >= kPairRows) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    store_one(p, 0, tile * kPairRows + row + 8 * h, gated_product(p.gated, acc[2 * h], up[row + 8 * h]));
  }
}

// One row's pair of q, k or v in a cluster: whether and where it goes, known before the chain begins.
struct OutputPair {
  bool live = false;
  RotatedPair rotated;

  __device__ OutputPair(const ThinParams& p, int column) {
    if (!p.rotate || column >= p.columns) return;
    const TokenPlace token = token_place(p.rope, 0);
    live = token.slot >= 0;
    if (live) rotated = rotated_pair(p.rope, token, 0, column);
  }
};

// To another CTA's shared memory, by an address in the cluster's window.
__device__ void send(uint32_t to, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory");
}

// kFused: x is a row that the kernel quantises, one from before its norm held in 64 registers a thread. Without, three
// CTAs fit an SM.
template <bool kFused>
__global__ void __launch_bounds__(kThreads, kFused ? kFusedResident : kMostResident)
    gemm_fp8_thin_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ ThinParams p) {
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t full[kGemmFp8MaxStages], empty[kGemmFp8MaxStages], landed;
  __shared__ float squares[kMakerWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = uniform(thread / 32);
  const int rank = p.cluster > 1 ? uniform(static_cast<int>(cluster_rank())) : 0;
  const int first_tile = static_cast<int>(blockIdx.x) / p.cluster;
  const int clusters = static_cast<int>(gridDim.x) / p.cluster;
  const int rows = 64 / p.cluster;  // that this CTA folds, in a cluster

  uint8_t* ring = shared_raw + ((1024 - shared_address(shared_raw) % 1024) % 1024);
  XShare share;
  share.first = rank * p.rank_blocks;
  share.count = min(p.rank_blocks, p.k_blocks - share.first);
  share.x = ring + p.stages * kWStage;
  share.scale = reinterpret_cast<float*>(share.x + p.rank_blocks * p.m * kXRow);
  float* w_scales = share.scale + p.rank_blocks * kColumns;  // two sets, of this tile and the next; up's behind gate's
  float* scales = w_scales + 4 * p.rank_blocks;              // of all blocks, [block][m]
  float* stash = scales + p.k_blocks * p.m;                  // [block][m][rows]
  const bool gated = p.gated != GatedKind::kNone;
  const int k_stages = (share.count + kSlices - 1) / kSlices;

  if (thread == kMakers) prefetch_tensor_map(&w_map);
  if (thread == 0) {
    for (int s = 0; s < p.stages; s++) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 4);
    }
    mbarrier_init(&landed, static_cast<uint32_t>(4 * p.cluster));
    mbarrier_init_fence();
  }
  if (p.cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  launch_dependents();

  if (warp == kMakers / 32) {
    const uint64_t policy = evict_first_policy();
    RingPosition at;
    at.phase = 1;
    for (int tile = first_tile; tile < p.tiles; tile += clusters) {
      for (int stage = 0; stage < k_stages; stage++) {
        mbarrier_wait(&empty[at.slot], at.phase);
        if (elect_one()) {
          mbarrier_arrive_expect(&full[at.slot], kWStage);
          uint8_t* to = ring + at.slot * kWStage;
          const int block = share.first + stage * kSlices;
          if (gated) {
#pragma unroll
            for (int i = 0; i < 2 * kSlices; i++) {
              tma_load_3d(to + i * (kWSlice / 2), &w_map, &full[at.slot], 0, i % 2 * p.columns + tile * kPairRows,
                          block + i / 2, policy);
            }
          } else {
            tma_load_3d(to, &w_map, &full[at.slot], 0, tile * 64, block, policy);
          }
        }
        __syncwarp();
        at.step(p.stages);
      }
    }
    return;
  }

  const auto w_scale = [&](int tile, int part) {
    const int row = gated ? (part * p.columns + tile * kPairRows) / 128 : tile / 2;
    return thread < share.count && tile < p.tiles && (part == 0 || gated)
               ? __ldg(p.w_scale + static_cast<int64_t>(row) * p.k_blocks + share.first + thread)
               : 0.0f;
  };
  const auto keep_w_scales = [&](int set, float first, float second) {
    if (thread >= p.rank_blocks) return;
    w_scales[2 * set * p.rank_blocks + thread] = first;
    w_scales[(2 * set + 1) * p.rank_blocks + thread] = second;
  };
  keep_w_scales(0, w_scale(first_tile, 0), w_scale(first_tile, 1));
  // Of the lane's pair: rows of a cluster's CTA are at most a warp's lanes.
  const int own_column = first_tile * 64 + rank * rows + lane;
  const OutputPair pair(p, warp == 0 && lane < rows ? own_column & ~1 : p.columns);
  make_x<kFused>(p, share, squares);
  fence_async_proxy();
  named_barrier_sync(1, kMakers);

  if (warp < 4) {
    Multiplier multiplier{k_major_descriptor(ring), full, empty, p.stages, static_cast<uint32_t>(p.m), {}};
    const uint64_t b0 = x_descriptor(share.x, p.m);
    const int column = lane % 4 * 2, row = warp * 16 + lane / 4;
    uint32_t to[2] = {};
    if (p.cluster > 1) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = row + 8 * h;
        to[h] = map_shared(shared_address(stash + (share.first * p.m + column) * rows + r % rows),
                           static_cast<uint32_t>(r / rows));
      }
    }
    int set = 0;
    for (int tile = first_tile; tile < p.tiles; tile += clusters, set ^= 1) {
      const float next_first = w_scale(tile + clusters, 0), next_second = w_scale(tile + clusters, 1);
      const float* w_set = w_scales + (2 * set + (gated && row >= kPairRows ? 1 : 0)) * p.rank_blocks;
      float acc[4] = {};
      const auto fold = [&](float(&d)[kSlices][4], int stage) {
#pragma unroll
        for (int j = 0; j < kSlices; j++) {
          const int block = stage * kSlices + j;
          if (block >= share.count) break;
          const float w = w_set[block];
          const float* x = share.scale + block * kColumns;
          if (p.cluster == 1) {
            const float s0 = numerics::fmul(x[column], w), s1 = numerics::fmul(x[column + 1], w);
            acc[0] = numerics::ffma(d[j][0], s0, acc[0]);
            acc[1] = numerics::ffma(d[j][1], s1, acc[1]);
            acc[2] = numerics::ffma(d[j][2], s0, acc[2]);
            acc[3] = numerics::ffma(d[j][3], s1, acc[3]);
            continue;
          }
#pragma unroll
          for (int i = 0; i < 4; i++) {
            if (column + i % 2 < p.m) {
              send(to[i / 2] + static_cast<uint32_t>((block * p.m + i % 2) * rows) * 4, d[j][i]);
            }
          }
        }
      };
      multiplier.run(k_stages, b0, fold);
      if (p.cluster == 1) {
        if (gated) {
          store_gated(p, tile, row, acc);
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) store_one(p, column + i % 2, tile * 64 + row + i / 2 * 8, acc[i]);
        }
        if (tile + clusters >= p.tiles) break;
        keep_w_scales(set ^ 1, next_first, next_second);
        named_barrier_sync(2, 128);
      }
    }
    if (p.cluster > 1) {
      // The products of scales of this CTA's blocks, to all.
      for (int e = thread; e < share.count * p.m * p.cluster; e += 128) {
        const int at = e % (share.count * p.m);
        send(
            map_shared(shared_address(scales + share.first * p.m + at), static_cast<uint32_t>(e / (share.count * p.m))),
            numerics::fmul(share.scale[at / p.m * kColumns + at % p.m], w_scales[at / p.m]));
      }
      __syncwarp();
      if (lane < p.cluster) mbarrier_arrive_remote_release(shared_address(&landed), static_cast<uint32_t>(lane));
    }
  }
  if (p.cluster == 1) return;
  mbarrier_wait_cluster(&landed, 0);
  const auto chain = [&](int i) {  // N16's fold of the row i % rows for x's row i / rows
    const float *from = stash + i, *scale = scales + i / rows;
    float acc = 0.0f;
#pragma unroll 16
    for (int block = 0; block < p.k_blocks; block++) {
      acc = numerics::ffma(from[block * p.m * rows], scale[block * p.m], acc);
    }
    return acc;
  };
  if (!p.rotate) {
    for (int i = thread; i < rows * p.m; i += kMakers) {
      store_one(p, i / rows, first_tile * 64 + rank * rows + i % rows, chain(i));
    }
  } else if (warp == 0) {
    float v = lane < rows ? chain(lane) : 0.0f;
    if (p.bias != nullptr && lane < rows && own_column < p.columns) v = numerics::fadd(v, __ldg(p.bias + own_column));
    const float next = __shfl_down_sync(0xffffffff, v, 1);
    if (pair.live && lane % 2 == 0) store_rotated(p.rope, pair.rotated, 0, v, next);
  }
}

CUtensorMap w_map(const GemmFp8Args& a, bool gated) {
  const auto row_bytes = static_cast<uint64_t>(fp8_row_bytes(a.k));
  const uint64_t dims[3] = {128, static_cast<uint64_t>(a.n), row_bytes / 128};
  const uint64_t strides[2] = {row_bytes, 128};
  const uint32_t box[3] = {128, gated ? uint32_t{kPairRows} : 64, gated ? 1 : uint32_t{kSlices}};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, a.w, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

ThinParams params_of(const GemmFp8Args& a, const GemmFp8ThinPlan& plan) {
  ThinParams p;
  p.x = a.x;
  p.x_scale = a.x_scale;
  p.x_row_bytes = fp8_row_bytes(a.k);
  p.x_scale_stride = a.x_scale_stride;
  p.w_scale = a.w_scale;
  p.m = static_cast<int>(a.m);
  p.columns = static_cast<int>(a.n);
  p.k_blocks = static_cast<int>(fp8_blocks(a.k));
  p.tiles = plan.tiles;
  p.cluster = plan.cluster;
  p.stages = plan.stages;
  p.rank_blocks = plan.rank_blocks;
  p.out_type = a.out_type;
  p.add = a.add;
  p.out_stride = a.row_stride();
  p.bias = a.bias;
  p.out = a.out;
  return p;
}

void launch(const GemmFp8Args& args, const ThinParams& params, const GemmFp8ThinPlan& plan,
            const KernelContext& context) {
  auto* kernel = params.source == Source::kQuantised ? gemm_fp8_thin_kernel<false> : gemm_fp8_thin_kernel<true>;
  allow_shared_memory("gemm_fp8_thin", kernel, static_cast<size_t>(plan.shared_bytes));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.ctas));
  shape.block = dim3(kThreads);
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster));
  shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  cuda::launch("gemm_fp8_thin", kernel, shape, context.stream, w_map(args, params.gated != GatedKind::kNone), params);
}

}  // namespace

void launch_gemm_fp8_thin_planned(const GemmFp8Args& args, const GemmFp8ThinPlan& plan, const KernelContext& context) {
  launch(args, params_of(args, plan), plan, context);
}

bool launch_gemm_fp8_thin(const GemmFp8Args& args, const KernelContext& context) {
  const GemmFp8ThinPlan plan = gemm_fp8_thin_plan({args.m, args.n, args.k}, context.sm_count, kMostResident);
  if (plan.stages == 0) return false;
  launch_gemm_fp8_thin_planned(args, plan, context);
  return true;
}

bool launch_quantized_gemm_fp8(const QuantizeFp8Args& source, const GemmFp8Args& args, const Fp8After& after,
                               const KernelContext& context) {
  const bool normed = source.weight != nullptr, pairs = after.gated != GatedKind::kNone;
  if (source.count != 1 || source.gated != GatedKind::kNone || source.n % 4 != 0) return false;
  if (normed ? source.n > kFp8NormedRow : source.x_type == DType::kF32) return false;
  const GemmFp8ThinPlan plan = gemm_fp8_thin_plan({args.m, args.n, args.k}, context.sm_count, kFusedResident);
  if (plan.stages == 0 || (pairs && (plan.cluster > 1 || args.n % (2 * kFp8Block) != 0))) return false;
  if (after.rope != nullptr && (plan.cluster == 1 || after.rope->count != 1 || !rotates_neighbours(*after.rope))) {
    return false;
  }
  ThinParams p = params_of(args, plan);
  p.source = normed ? Source::kNormedRow : Source::kRow;
  p.raw = source.x;
  p.raw_n = static_cast<int>(source.n);
  p.norm_weight = source.weight;
  p.eps = source.eps;
  p.round_type = normed ? source.round_type : source.x_type;
  p.gated = after.gated;
  if (pairs) p.columns /= 2;
  p.rotate = after.rope != nullptr;
  if (p.rotate) p.rope = *after.rope;
  launch(args, p, plan, context);
  return true;
}

}  // namespace isobit::cuda
