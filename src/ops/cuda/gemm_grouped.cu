// Experts' GEMMs in bf16 and f16 (rule N7 for every row). Rows of x are the wgmma's M side, rows of w its N side; two
// warps keep a ring of shared-memory stages of 64 of K full through the copy engine, one with w, which waits for no
// other kernel but the one that counts the experts' rows, one with x. CTAs are persistent and walk as grouped_walk.h
// has it; the ring runs on from tile to tile.
//   few rows: 64 × 128 by one warpgroup; w's bytes bound the time (4.3 TB/s).
//   many rows: 128 × 256 by two. Where an expert's last tile has at most 64 rows both warpgroups take these, each half
//     the columns: such a tile costs half the tensor work instead of all.
// docs/operators.md has bytes, operations and what was measured.
#include <cuda.h>

#include <algorithm>

#include "numerics/gemm.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm_kernel.h"
#include "ops/cuda/grouped_walk.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/moe.h"

namespace isobit::cuda {
namespace {

using numerics::Operand;
namespace hp = hopper;

constexpr uint32_t kRow = 128;  // bytes of a row of 64 of K
constexpr int kMaxStages = 16;
constexpr int kShared = 225 * 1024;  // of 227 KB

struct Params {
  ExpertTable table;
  int columns = 0;                                      // rows of one expert's matrix
  int k_stages = 0, chunk_stages = 0;                   // of 64
  int n_tiles = 0, tile_m = 0, x_load = 0, stages = 0;  // n_tiles: in clusters
  int cluster = 1;                                      // CTAs along N that share x's tile
  bool wide_out = false;                                // f32, else rounded
  bool aligned = false;                                 // out stands at 16 bytes
  bool w_once = false;                                  // each row of w is asked for by one tile
  void* out = nullptr;
  uint32_t* tickets = nullptr;  // KernelContext::counters
};

// The ring as a consumer sees it.
struct Ring {
  uint32_t full, empty;
  int stages;
  uint32_t x_stage, w_stage;  // bytes
  int lane, cluster;
  RingPosition at;

  // A stage is free once every warp that reads it says so to every CTA that fills it.
  __device__ void release(int slot) const {
    if (cluster > 1) {
      if (lane < cluster) hp::mbarrier_arrive_remote(empty + 8 * slot, static_cast<uint32_t>(lane));
    } else if (lane == 0) {
      hp::mbarrier_arrive(empty + 8 * slot);
    }
  }
};

// One tile's chain: `d` of kN columns += 64 rows of x times rows of w, at descriptors a and b of the ring's first slot.
// chunk: stages whose chain stands alone (N7's narrow matrices); their sums are in `sum`, of which there are none where
// matrices are never narrow.
template <int kN, Operand kKind, int kSums>
__device__ inline void run_chain(float (&d)[kN / 2], float (&sum)[kSums], Ring& ring, const Params& p, uint64_t a,
                                 uint64_t b) {
#pragma unroll
  for (int i = 0; i < kN / 2; i++) d[i] = 0.0f;
  int previous = -1;
  [[maybe_unused]] int chunk_end = p.chunk_stages;
  for (int stage = 0; stage < p.k_stages; stage++) {
    if constexpr (kSums == kN / 2) {
      if (stage == chunk_end) {
        hp::wgmma_wait<0>();
        hp::pin_registers(d);
#pragma unroll
        for (int i = 0; i < kN / 2; i++) {
          sum[i] = stage == p.chunk_stages ? d[i] : numerics::fadd(sum[i], d[i]);
          d[i] = 0.0f;
        }
        chunk_end += p.chunk_stages;
      }
    }
    const int slot = ring.at.slot;
    hp::mbarrier_wait(ring.full + 8 * slot, ring.at.phase);
    const uint64_t from_x = a + static_cast<uint32_t>(slot) * (ring.x_stage >> 4);
    const uint64_t from_w = b + static_cast<uint32_t>(slot) * (ring.w_stage >> 4);
    hp::pin_registers(d);
    hp::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) hp::wgmma<kN, kKind>(d, from_x + 2 * k, from_w + 2 * k, true);
    hp::wgmma_commit();
    if (previous >= 0) {
      hp::wgmma_wait<1>();
      ring.release(previous);
    }
    previous = slot;
    ring.at.step(ring.stages);
  }
  hp::wgmma_wait<0>();
  hp::pin_registers(d);
  ring.release(previous);
  if constexpr (kSums == kN / 2) {
    if (chunk_end > p.chunk_stages) {
#pragma unroll
      for (int i = 0; i < kN / 2; i++) d[i] = numerics::fadd(sum[i], d[i]);
    }
  }
}

// in_tile: this thread's first row, the other is 8 below. column: the first of d's.
template <int kN, Operand kKind>
__device__ inline void store(const float (&d)[kN / 2], const Params& p, const ExpertTile& tile, int in_tile,
                             int column) {
  const int column0 = column + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = tile.row + in_tile + 8 * h;
    const bool active = in_tile + 8 * h < p.tile_m && row < tile.row_end;
    const int64_t offset = static_cast<int64_t>(active ? row : 0) * p.columns;
    if (p.wide_out) {
      float v[kN / 4];
#pragma unroll
      for (int q = 0; q < kN / 8; q++) v[2 * q] = d[4 * q + 2 * h], v[2 * q + 1] = d[4 * q + 2 * h + 1];
      gemm_detail::store_row<kN / 8>(v, static_cast<float*>(p.out) + offset, column0, p.columns, false, p.aligned,
                                     active);
    } else {
      uint32_t packed[kN / 8];
#pragma unroll
      for (int q = 0; q < kN / 8; q++) packed[q] = gemm_detail::pack<kKind>(d[4 * q + 2 * h], d[4 * q + 2 * h + 1]);
      gemm_detail::store_row<kN / 8>(packed, static_cast<uint16_t*>(p.out) + offset, column0, p.columns, p.aligned,
                                     active);
    }
  }
}

// What a stage's copy brings: rows from `row` on, to `sharing` CTAs; bytes: what arrives here altogether, 0 for
// `stage`.
struct Source {
  int row;
  uint32_t bytes;
  int sharing;
};

// A warp that keeps its half of the stages full: x's or w's. source(tile) says from where.
template <typename From>
__device__ inline void feed(const CUtensorMap& map, uint32_t full, uint32_t empty, uint32_t ring, uint32_t stage_bytes,
                            uint64_t policy, TileQueue& queue, ExpertWalk& walk, const Params& p, int first_tile,
                            bool takes_tickets, const From& source) {
  RingPosition at;
  at.phase = 1;
  for (int index = first_tile; index < walk.count(); index = queue.next(index)) {
    const Source from = source(walk.at(index));
    for (int stage = 0; stage < p.k_stages; stage++) {
      const uint32_t bar = full + 8 * at.slot, to = ring + static_cast<uint32_t>(at.slot) * stage_bytes;
      hp::mbarrier_wait(empty + 8 * at.slot, at.phase);
      if (hp::elect_one()) {
        hp::mbarrier_arrive_expect(bar, from.bytes);
        if (from.sharing > 1) {
          hp::tma_load_3d_multicast(to, &map, bar, stage * 64, from.row, 0,
                                    static_cast<uint16_t>((1 << from.sharing) - 1), policy);
        } else {
          hp::tma_load_3d(to, &map, bar, stage * 64, from.row, 0, policy);
        }
      }
      __syncwarp();
      at.step(p.stages);
      if (stage == 0 && takes_tickets) queue.publish();
    }
  }
  if (takes_tickets) queue.finish();
}

constexpr int threads(int warpgroups) { return warpgroups == 1 ? 192 : 128 * warpgroups + 128; }

template <int kWarpgroups, int kN, Operand kKind>
__global__ void __launch_bounds__(threads(kWarpgroups), 1)
    grouped_gemm_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                        const __grid_constant__ Params p) {
  using namespace hopper;
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t barriers[2 * kMaxStages];
  const uint32_t full = uniform(kept_shared_address(barriers)), empty = full + 8 * kMaxStages;
  int* tiles_before = reinterpret_cast<int*>(shared_raw + TileQueue::kBytes);
  const uint32_t table_bytes = TileQueue::kBytes + static_cast<uint32_t>(p.table.experts + 1) * 4;
  const uint32_t x_ring = (uniform(kept_shared_address(shared_raw)) + table_bytes + 1023) & ~1023u;
  const uint32_t x_stage = static_cast<uint32_t>(p.tile_m) * kRow;
  constexpr uint32_t kWStage = kN * kRow;
  const uint32_t w_ring = x_ring + static_cast<uint32_t>(p.stages) * x_stage;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = uniform(thread / 32);
  const int rank = p.cluster > 1 ? uniform(static_cast<int>(cluster_rank())) : 0;
  const int first_tile = static_cast<int>(blockIdx.x) / p.cluster;
  TileQueue queue(shared_raw, p.tickets, p.cluster, static_cast<int>(gridDim.x) / p.cluster);

  if (thread == 0) {
    for (int s = 0; s < p.stages; s++) {
      mbarrier_init(&barriers[s], 2);
      mbarrier_init(&barriers[kMaxStages + s], static_cast<uint32_t>(4 * kWarpgroups * p.cluster));
    }
    queue.init(4 * kWarpgroups + 2);
    mbarrier_init_fence();
  }
  wait_for_predecessors();  // who counts the experts' rows
  count_tiles(p.table, p.tile_m, p.n_tiles, tiles_before);
  if (p.cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  launch_dependents();
  ExpertWalk walk{p.table, tiles_before, p.tile_m};

  if (warp >= 4 * kWarpgroups) {
    if constexpr (kWarpgroups > 1) lower_registers<40>();
    const int role = warp - 4 * kWarpgroups;
    if (role == 0) {
      const uint64_t policy = p.w_once ? evict_first_policy() : evict_normal_policy();
      feed(w_map, full, empty, w_ring, kWStage, policy, queue, walk, p, first_tile, rank == 0,
           [&](const ExpertTile& tile) {
             return Source{tile.expert * p.columns + (tile.n_tile * p.cluster + rank) * kN, kWStage, 1};
           });
    } else if (role == 1) {
      // Each CTA of a cluster copies its share of x's rows to all.
      const int share = p.x_load / p.cluster;
      feed(x_map, full, empty, x_ring + static_cast<uint32_t>(rank * share) * kRow, x_stage, evict_normal_policy(),
           queue, walk, p, first_tile, false, [&](const ExpertTile& tile) {
             return Source{tile.row + rank * share, static_cast<uint32_t>(p.x_load) * kRow, p.cluster};
           });
    }
    __syncwarp();
  } else {
    if constexpr (kWarpgroups > 1) raise_registers<232>();
    const int warpgroup = warp / 4, row_in_group = warp % 4 * 16 + lane / 4;
    Ring ring{full, empty, p.stages, x_stage, kWStage, lane, p.cluster, {}};
    constexpr bool kChunks = kWarpgroups == 1;
    [[maybe_unused]] float sum[kChunks ? kN / 2 : 1];
    const uint64_t a = k_major_descriptor(x_ring), b = k_major_descriptor(w_ring);
    for (int index = first_tile, after; index < walk.count(); index = after) {
      const ExpertTile tile = walk.at(index);
      after = queue.next(index);
      const int column = (tile.n_tile * p.cluster + rank) * kN;
      if constexpr (kWarpgroups == 2) {
        if (tile.row_end - tile.row <= 64) {
          const int half = warpgroup * (kN / 2);
          float d[kN / 4];
          run_chain<kN / 2, kKind>(d, sum, ring, p, a, b + static_cast<uint32_t>(half) * (kRow >> 4));
          store<kN / 2, kKind>(d, p, tile, row_in_group, column + half);
          continue;
        }
      }
      float d[kN / 2];
      run_chain<kN, kKind>(d, sum, ring, p, a + static_cast<uint32_t>(warpgroup) * (64 * kRow >> 4), b);
      store<kN, kKind>(d, p, tile, warpgroup * 64 + row_in_group, column);
    }
  }
  // No CTA leaves while another may still write into its shared memory or signal its barriers.
  if (p.cluster > 1) cluster_sync();
}

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Rows of bf16 or f16; what lies outside arrives as zeros. (A third dimension of one, for the copies of tma.h.)
CUtensorMap rows_map(const uint16_t* base, int64_t rows, int64_t k, int box_rows) {
  const uint64_t dims[3] = {static_cast<uint64_t>(k), static_cast<uint64_t>(rows), 1};
  const uint64_t strides[2] = {static_cast<uint64_t>(k) * 2, static_cast<uint64_t>(rows * k) * 2};
  const uint32_t box[3] = {64, static_cast<uint32_t>(box_rows), 1};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, base, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
}

constexpr int tile_n(bool many) { return many ? 256 : 128; }

template <int kWarpgroups, int kN, Operand kKind>
void launch_tile(const GroupedGemmPlan& plan, const CUtensorMap& x, const CUtensorMap& w, const Params& p,
                 cudaStream_t stream) {
  auto* kernel = grouped_gemm_kernel<kWarpgroups, kN, kKind>;
  allow_shared_memory("grouped_gemm", kernel, 226 * 1024);  // always the same, for launches of several threads
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.ctas));
  shape.block = dim3(threads(kWarpgroups));
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster));
  shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  launch("grouped_gemm", kernel, shape, stream, x, w, p);
}

}  // namespace

bool grouped_gemm_fits(const GroupedGemmArgs& a, bool many) { return !many || numerics::gemm_chunk_k(a.n, a.k) == a.k; }

GroupedGemmPlan grouped_gemm_plan_for(const GroupedGemmArgs& a, bool many, int tile_m, int cluster, int sm_count) {
  GroupedGemmPlan p;
  p.many = many;
  p.tile_m = tile_m;
  p.cluster = cluster;
  p.n_tiles = ceil_div(a.n, tile_n(many) * cluster);
  const int stage_bytes = (tile_m + tile_n(many)) * static_cast<int>(kRow);
  // Beside the ring: the queue of tiles and their table, and what aligns it. Rows that the products read behind x's
  // last are w's.
  const int head = static_cast<int>(TileQueue::kBytes) + static_cast<int>(a.experts + 1) * 4;
  const int spare = (head + 1023) / 1024 * 1024 + 1024;
  p.stages = std::clamp((kShared - spare) / stage_bytes, 2, kMaxStages);
  p.shared_bytes = p.stages * stage_bytes + spare;
  p.ctas = sm_count / cluster * cluster;
  return p;
}

GroupedGemmPlan grouped_gemm_plan(const GroupedGemmArgs& a, int sm_count) {
  const int64_t expected = a.capacity == 0 ? ceil_div(a.m, a.experts) : a.expected_m == 0 ? a.capacity : a.expected_m;
  const bool many = expected > 48 && grouped_gemm_fits(a, true);
  // Few: room for half as many rows again as are expected, since a second tile costs as much as the first.
  const int64_t rows = many ? 128 : std::clamp<int64_t>((expected + expected / 2 + 11) / 8 * 8, 8, 64);
  return grouped_gemm_plan_for(a, many, static_cast<int>(rows), many ? 2 : 1, sm_count);
}

void launch_grouped_gemm_planned(const GroupedGemmArgs& a, const GroupedGemmPlan& plan, const KernelContext& context) {
  Params p;
  p.table = {static_cast<int>(a.experts), static_cast<int>(a.capacity), static_cast<int>(a.m), a.rows};
  p.columns = static_cast<int>(a.n);
  p.k_stages = ceil_div(a.k, 64);
  p.chunk_stages = ceil_div(numerics::gemm_chunk_k(a.n, a.k), 64);
  p.n_tiles = plan.n_tiles;
  p.tile_m = plan.tile_m;
  p.cluster = plan.cluster;
  p.x_load = plan.cluster > 1 ? plan.tile_m : static_cast<int>(std::min<int64_t>(a.m, plan.tile_m));
  p.stages = plan.stages;
  p.w_once = !plan.many;
  p.wide_out = a.out_type == DType::kF32;
  p.aligned = reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  p.out = a.out;
  p.tickets = context.counters;
  const CUtensorMap x = rows_map(a.x, a.m, a.k, p.x_load / plan.cluster);
  const CUtensorMap w = rows_map(a.w, a.experts * a.n, a.k, tile_n(plan.many));
  const bool half = a.type == DType::kF16;
  const auto launch_kind = plan.many
                               ? (half ? launch_tile<2, 256, Operand::kF16> : launch_tile<2, 256, Operand::kBF16>)
                               : (half ? launch_tile<1, 128, Operand::kF16> : launch_tile<1, 128, Operand::kBF16>);
  launch_kind(plan, x, w, p, context.stream);
}

void launch_grouped_gemm(const GroupedGemmArgs& a, const KernelContext& context) {
  if (a.m == 0) return;
  launch_grouped_gemm_planned(a, grouped_gemm_plan(a, context.sm_count), context);
}

}  // namespace isobit::cuda
