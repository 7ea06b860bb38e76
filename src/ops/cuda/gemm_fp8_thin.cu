// The FP8 GEMM of at most eight rows of x. A CTA has 64 rows of w and a share of K; w comes through a ring of
// shared-memory stages filled by the copy engine, asked for before the kernel waits for its predecessor. x's share
// stands in shared memory whole. One warpgroup multiplies: w is the wgmma's M side, x its N side, so a product of 64 ×
// 8 × 128 takes four accumulators a thread. Alone, a CTA folds as it multiplies and walks over tiles. In a cluster
// every CTA sends its p, and the products of scales, to those that fold the rows; each folds 64/C rows, all of K in
// order.
#include <cuda.h>

#include "ops/cuda/device_math.h"
#include "ops/cuda/gemm_fp8_thin.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/hopper/warp.h"
#include "ops/cuda/hopper/wgmma_e4m3.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/ring.h"

namespace isobit::cuda {
namespace {

using namespace hopper;

constexpr int kMakers = 256;  // threads that copy x; the first 128 multiply
constexpr int kThreads = kMakers + 32;
constexpr int kSlices = kGemmFp8ThinSlices, kColumns = kGemmFp8ThinRows;
constexpr uint32_t kWSlice = 64 * 128, kWStage = kSlices * kWSlice, kXBlock = kColumns * 128;

struct ThinParams {
  const uint8_t* x = nullptr;
  const float* x_scale = nullptr;
  int64_t x_row_bytes = 0, x_scale_stride = 0;
  const float* w_scale = nullptr;
  int m = 0, columns = 0, k_blocks = 0;
  int tiles = 0, cluster = 1, stages = 0, rank_blocks = 0;
  DType out_type = DType::kBF16;
  bool add = false;
  int64_t out_stride = 0;
  const float* bias = nullptr;
  void* out = nullptr;
};

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

// A CTA's share of K, and x's there in shared memory: rows of 128 swizzled bytes, eight a block; scales [block][8].
struct XShare {
  uint8_t* x;
  float* scale;
  int first, count;  // blocks
};

__device__ void copy_x(const ThinParams& p, const XShare& share) {
  const int thread = static_cast<int>(threadIdx.x), scales = p.m * share.count;
  const auto scale_of = [&](int i) {
    return i < scales ? p.x_scale[(share.first + i / p.m) * p.x_scale_stride + i % p.m] : 0.0f;
  };
  const float first = scale_of(thread);  // asked for beside x
  for (int i = thread; i < scales * 8; i += kMakers) {
    const int chunk = i % 8, block = i / 8 % share.count, row = i / 8 / share.count;
    const uint4 v = *reinterpret_cast<const uint4*>(p.x + row * p.x_row_bytes +
                                                    static_cast<int64_t>(share.first + block) * 128 + chunk * 16);
    *reinterpret_cast<uint4*>(share.x + block * kXBlock + row * 128 + (chunk ^ row) * 16) = v;
  }
  for (int i = thread; i < scales; i += kMakers) {
    share.scale[i / p.m * kColumns + i % p.m] = i == thread ? first : scale_of(i);
  }
}

// To another CTA's shared memory, by an address in the cluster's window.
__device__ void send(uint32_t to, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory");
}

__global__ void __launch_bounds__(kThreads, 2)
    gemm_fp8_thin_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ ThinParams p) {
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t full[kGemmFp8MaxStages], empty[kGemmFp8MaxStages], landed;
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
  share.scale = reinterpret_cast<float*>(share.x + p.rank_blocks * kXBlock);
  float* w_scales = share.scale + p.rank_blocks * kColumns;  // two sets: of this tile and the next
  float* scales = w_scales + 2 * p.rank_blocks;              // of all blocks, [block][m]
  float* stash = scales + p.k_blocks * p.m;                  // [block][m][rows]
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
          tma_load_3d(ring + at.slot * kWStage, &w_map, &full[at.slot], 0, tile * 64, share.first + stage * kSlices,
                      policy);
        }
        __syncwarp();
        at.step(p.stages);
      }
    }
    return;
  }

  const auto w_scale = [&](int tile) {
    return thread < share.count && tile < p.tiles
               ? __ldg(p.w_scale + static_cast<int64_t>(tile / 2) * p.k_blocks + share.first + thread)
               : 0.0f;
  };
  if (thread < p.rank_blocks) w_scales[thread] = w_scale(first_tile);
  wait_for_predecessors();
  copy_x(p, share);
  fence_async_proxy();
  named_barrier_sync(1, kMakers);

  if (warp < 4) {
    const uint64_t a0 = k_major_descriptor(ring), b0 = k_major_descriptor(share.x);
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
    RingPosition next;
    int set = 0;
    for (int tile = first_tile; tile < p.tiles; tile += clusters, set ^= 1) {
      const float next_scale = w_scale(tile + clusters);
      const float* w_set = w_scales + set * p.rank_blocks;
      float acc[4] = {};
      const auto issue = [&](float(&d)[kSlices][4], int stage, int at) {
        const uint64_t a = a0 + static_cast<uint32_t>(at) * (kWStage >> 4);
        const uint64_t b = b0 + static_cast<uint32_t>(stage) * (kSlices * kXBlock >> 4);
#pragma unroll
        for (int j = 0; j < kSlices; j++) pin_registers(d[j]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
          for (int j = 0; j < kSlices; j++) {
            wgmma_e4m3<8>(d[j], a + j * (kWSlice >> 4) + 2 * k, b + j * (kXBlock >> 4) + 2 * k, k > 0);
          }
        }
        wgmma_commit();
      };
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
      const auto arrive = [&] {  // waits for the next stage
        const int at = next.slot;
        mbarrier_wait(&full[at], next.phase);
        next.step(p.stages);
        return at;
      };
      const auto finish = [&](float(&d)[kSlices][4], int stage, int at) {
#pragma unroll
        for (int j = 0; j < kSlices; j++) pin_registers(d[j]);
        if (lane == 0) mbarrier_arrive(&empty[at]);
        fold(d, stage);
      };
      // Two stages at once: one is folded while the other is multiplied.
      int stage = 0;
      for (; stage + 1 < k_stages; stage += 2) {
        float d[2][kSlices][4] = {};
        const int first = arrive();
        issue(d[0], stage, first);
        const int second = arrive();
        issue(d[1], stage + 1, second);
        wgmma_wait<1>();
        finish(d[0], stage, first);
        wgmma_wait<0>();
        finish(d[1], stage + 1, second);
      }
      if (stage < k_stages) {
        float d[kSlices][4] = {};
        const int at = arrive();
        issue(d, stage, at);
        wgmma_wait<0>();
        finish(d, stage, at);
      }
      if (p.cluster == 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) store_one(p, column + i % 2, tile * 64 + row + i / 2 * 8, acc[i]);
        if (tile + clusters >= p.tiles) break;
        if (thread < p.rank_blocks) w_scales[(set ^ 1) * p.rank_blocks + thread] = next_scale;
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
  for (int i = thread; i < rows * p.m; i += kMakers) {
    const int row = i % rows, column = i / rows;
    const float *from = stash + i, *scale = scales + column;
    float acc = 0.0f;
#pragma unroll 8
    for (int block = 0; block < p.k_blocks; block++) {
      acc = numerics::ffma(from[block * p.m * rows], scale[block * p.m], acc);
    }
    store_one(p, column, first_tile * 64 + rank * rows + row, acc);
  }
}

CUtensorMap w_map(const GemmFp8Args& a) {
  const auto row_bytes = static_cast<uint64_t>(fp8_row_bytes(a.k));
  const uint64_t dims[3] = {128, static_cast<uint64_t>(a.n), row_bytes / 128};
  const uint64_t strides[2] = {row_bytes, 128};
  const uint32_t box[3] = {128, 64, kSlices};
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

}  // namespace

void launch_gemm_fp8_thin_planned(const GemmFp8Args& args, const GemmFp8ThinPlan& plan, const KernelContext& context) {
  allow_shared_memory("gemm_fp8_thin", gemm_fp8_thin_kernel, static_cast<size_t>(plan.shared_bytes));
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.ctas));
  shape.block = dim3(kThreads);
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster));
  shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  launch("gemm_fp8_thin", gemm_fp8_thin_kernel, shape, context.stream, w_map(args), params_of(args, plan));
}

bool launch_gemm_fp8_thin(const GemmFp8Args& args, const KernelContext& context) {
  const GemmFp8ThinPlan plan = gemm_fp8_thin_plan({args.m, args.n, args.k}, context.sm_count);
  if (plan.stages == 0) return false;
  launch_gemm_fp8_thin_planned(args, plan, context);
  return true;
}

}  // namespace isobit::cuda
