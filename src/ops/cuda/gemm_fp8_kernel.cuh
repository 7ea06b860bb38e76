#pragma once
// The block-scaled FP8 GEMM kernel (rule N16). For each 128 of K ascending: p = four wgmma k32 steps from zero, then
// acc = fma(p, x_scale · w_scale, acc) on the CUDA cores. docs/operators.md has the arithmetic behind the tiles.
//
// Rows of x are the wgmma's M side, rows of w its N side. Consumer warpgroups have 64 rows of x each; two more warps
// keep a ring of shared-memory stages full through the copy engine, one with w, which waits for no other kernel, one
// with x and its scales. The CTA is persistent: the ring runs on from tile to tile.
//   many rows: two warpgroups; while one folds its p into acc, the tensor cores work for the other.
//   few rows: one warpgroup with two sets of p; a block is multiplied while the one before it is folded.
// Grouped: each expert's rows of x meet its own matrix; how many rows an expert has is read on the
// device. w's rows may be `permuted`: in every 32, shared row 8q + 2j + i holds w's row 8j + 2q + i (a copy of five
// dimensions does it), so that a thread's accumulators 4q + i of four q are eight neighbouring columns.
#include <cuda.h>

#include <numeric>
#include <type_traits>

#include "ops/cuda/device_math.h"
#include "ops/cuda/gemm_fp8_params.h"
#include "ops/cuda/gemm_fp8_plan.h"
#include "ops/cuda/grouped_walk.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/registers.h"
#include "ops/cuda/hopper/tma_5d.h"
#include "ops/cuda/hopper/warp.h"
#include "ops/cuda/hopper/wgmma_e4m3.h"
#include "ops/cuda/ring.h"

namespace isobit::cuda {

namespace gemm_fp8_detail {

constexpr uint32_t kBlockRow = 128;  // bytes of a row of one block of K

// A tile of the output.
struct Tile {
  int row = 0, row_end = 0;      // of x and out: the tile's first, and the end of the rows that it may store
  int column = 0;                // of out
  int w_row = 0, scale_row = 0;  // of w and of its scales: an expert's first, if there are several, counted in
};

// Tiles in the order in which they are walked. Dense: groups of group_m clusters along M, in a group all of N. Grouped:
// as grouped_walk.h has it.
template <bool kGrouped>
struct TileWalk {
  const GemmFp8Params& p;
  ExpertWalk experts;
  int rank;  // in a cluster: along M, grouped along N

  __device__ int count() const { return kGrouped ? experts.count() : p.m_clusters * p.n_tiles; }
  __device__ Tile at(int index, int tile_n) {
    if constexpr (kGrouped) {
      return grouped(index, tile_n);
    } else {
      return dense(index, tile_n);
    }
  }

 private:
  __device__ Tile dense(int index, int tile_n) const {
    const int per_group = p.group_m * p.n_tiles;
    const int group = index / per_group, in_group = index % per_group;
    const int first = group * p.group_m;
    const int size = min(p.group_m, p.m_clusters - first);
    Tile t;
    t.row = ((first + in_group % size) * p.cluster_m + rank) * p.tile_m;
    t.row_end = p.m;
    t.column = t.w_row = in_group / size * tile_n;
    return t;
  }
  __device__ Tile grouped(int index, int tile_n) {
    const ExpertTile e = experts.at(index);
    Tile t;
    t.row = e.row;
    t.row_end = e.row_end;
    t.column = (e.n_tile * p.cluster_n + rank) * tile_n;
    t.w_row = e.expert * p.expert_rows + t.column;
    t.scale_row = e.expert * p.n_blocks;
    return t;
  }
};

// Columns of a tile that surely share a scale of w: boundaries between blocks of 128 fall between units.
template <GemmFp8Tile kTile>
constexpr int kUnit = kTile.permuted ? 32 : 8;
// Blocks of w's scales that a part of a tile can touch: it begins at a multiple of its width.
template <GemmFp8Tile kTile>
constexpr int kScaleBlocks = (128 - std::gcd(kTile.part_n(), 128) + kTile.part_n() + 127) / 128;

// w's scales of one part's blocks. Lane l of a warp holds those of block 32c + l of K for the current chunk c of 32
// and, asked for early, the next.
template <GemmFp8Tile kTile>
struct WeightScales {
  static constexpr int kCount = kTile.parts * kScaleBlocks<kTile>;
  float now[kCount], next[kCount];

  __device__ static int first_block(int column, int part) {
    return (column + part * kTile.part_n() / kUnit<kTile> * kUnit<kTile>) / 128;
  }
  __device__ void ask(const GemmFp8Params& p, const Tile& tile, int chunk, int lane) {
    const int k = chunk * 32 + lane;
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int first = first_block(tile.column, i / kScaleBlocks<kTile>);
      const int block = tile.scale_row + min(first + i % kScaleBlocks<kTile>, p.n_blocks - 1);
      next[i] = k < p.k_blocks ? __ldg(p.w_scale + static_cast<int64_t>(block) * p.k_blocks + k) : 0.0f;
    }
  }
  __device__ void advance() {
#pragma unroll
    for (int i = 0; i < kCount; i++) now[i] = next[i];
  }
  __device__ float at(int part, int which, int k_block) const {
    return __shfl_sync(0xffffffff, now[part * kScaleBlocks<kTile> + which], k_block % 32);
  }
};

__device__ inline float load_shared(uint32_t address) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

__device__ inline uint32_t pack(bool half, float low, float high) {
  return half ? pack_f16(low, high) : pack_bf16(low, high);
}

// Two f32 outputs, of which the second may not exist; `whole`: both do, and stand at 8 bytes.
__device__ inline void store_f32(float* out, bool add, bool whole, float a, float b, bool both) {
  using numerics::fadd;
  if (whole) {
    const float2 old = add ? *reinterpret_cast<const float2*>(out) : make_float2(0.0f, 0.0f);
    *reinterpret_cast<float2*>(out) = add ? make_float2(fadd(old.x, a), fadd(old.y, b)) : make_float2(a, b);
    return;
  }
  out[0] = add ? fadd(out[0], a) : a;
  if (both) out[1] = add ? fadd(out[1], b) : b;
}

// Two neighbouring columns of a row.
__device__ inline void store_pair(const GemmFp8Params& p, int64_t row, int column, float a, float b) {
  using numerics::fadd;
  const int64_t at = row * p.out_stride + column;
  const bool both = column + 1 < p.columns;
  if (column >= p.columns) return;
  if (p.bias != nullptr) {
    a = fadd(a, __ldg(p.bias + column));
    if (both) b = fadd(b, __ldg(p.bias + column + 1));
  }
  if (p.out_type == GemmFp8Out::kF32) {
    return store_f32(static_cast<float*>(p.out) + at, p.add, p.even && both, a, b, both);
  }
  const uint32_t packed = pack(p.out_type == GemmFp8Out::kF16, a, b);
  uint16_t* out = static_cast<uint16_t*>(p.out) + at;
  if (p.even && both) {
    *reinterpret_cast<uint32_t*>(out) = packed;
  } else {
    out[0] = static_cast<uint16_t>(packed);
    if (both) out[1] = static_cast<uint16_t>(packed >> 16);
  }
}

// Eight neighbouring columns of a row.
__device__ inline void store_eight(const GemmFp8Params& p, int64_t row, int column, const float (&v)[8]) {
  if (!p.wide || p.add || p.bias != nullptr || column + 8 > p.columns) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) store_pair(p, row, column + i, v[i], v[i + 1]);
    return;
  }
  const int64_t at = row * p.out_stride + column;
  if (p.out_type == GemmFp8Out::kF32) {
    auto* out = reinterpret_cast<float4*>(static_cast<float*>(p.out) + at);
    out[0] = make_float4(v[0], v[1], v[2], v[3]);
    out[1] = make_float4(v[4], v[5], v[6], v[7]);
    return;
  }
  const bool half = p.out_type == GemmFp8Out::kF16;
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + at) =
      make_uint4(pack(half, v[0], v[1]), pack(half, v[2], v[3]), pack(half, v[4], v[5]), pack(half, v[6], v[7]));
}

// kColumns columns of acc as wgmma.h lays it out, the first of them `column`; row: this thread's first in its tile, the
// other is 8 below.
template <GemmFp8Tile kTile, int kColumns = kTile.tile_n>
__device__ inline void store_tile(const float (&acc)[kTile.tile_n / 2], const GemmFp8Params& p, const Tile& tile,
                                  int row, int column) {
  const int quad_lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int in_tile = row + 8 * h, r = tile.row + in_tile;
    if (in_tile >= p.tile_m || r >= tile.row_end) continue;
    if constexpr (kTile.permuted) {
#pragma unroll
      for (int g = 0; g < kColumns / 32; g++) {
        float v[8];
#pragma unroll
        for (int q = 0; q < 4; q++) {
          v[2 * q] = acc[4 * (4 * g + q) + 2 * h];
          v[2 * q + 1] = acc[4 * (4 * g + q) + 2 * h + 1];
        }
        store_eight(p, r, column + 32 * g + 8 * quad_lane, v);
      }
    } else {
#pragma unroll
      for (int q = 0; q < kColumns / 8; q++) {
        store_pair(p, r, column + 8 * q + 2 * quad_lane, acc[4 * q + 2 * h], acc[4 * q + 2 * h + 1]);
      }
    }
  }
}

// The tile's 16-bit outputs by way of shared memory and the copy engine, so that the next tile's multiplications need
// not wait for them to leave. Every thread of a warpgroup calls; the tile has all its rows.
template <GemmFp8Tile kTile>
__device__ inline void stage_tile(const float (&acc)[kTile.tile_n / 2], const GemmFp8Params& p, const CUtensorMap* map,
                                  uint8_t* staging, int first_row, int column) {
  using namespace hopper;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32, quad_lane = lane % 4;
  const uint32_t barrier = 3 + threadIdx.x / 128;
  const bool half = p.out_type == GemmFp8Out::kF16;
  if (thread == 0) tma_store_wait_read<0>();  // the tile before has left
  named_barrier_sync(barrier, 128);
  const bool odd = (lane / 4) % 2 != 0;  // odd rows write the other half of the 128 bytes first: no bank conflicts
#pragma unroll
  for (int b = 0; b < kTile.tile_n / 64; b++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      uint32_t v[2][4];
#pragma unroll
      for (int g = 0; g < 2; g++) {
#pragma unroll
        for (int q = 0; q < 4; q++) {
          const int i = 4 * (4 * (2 * b + g) + q) + 2 * h;
          v[g][q] = pack(half, acc[i], acc[i + 1]);
        }
      }
      const int row = thread / 32 * 16 + lane / 4 + 8 * h;
      uint8_t* to = staging + b * 8192 + row * 128;
      const int first = (odd ? 4 : 0) + quad_lane;
      *reinterpret_cast<uint4*>(to + ((first ^ (row % 8)) * 16)) = make_uint4(
          odd ? v[1][0] : v[0][0], odd ? v[1][1] : v[0][1], odd ? v[1][2] : v[0][2], odd ? v[1][3] : v[0][3]);
      *reinterpret_cast<uint4*>(to + (((first ^ 4) ^ (row % 8)) * 16)) = make_uint4(
          odd ? v[0][0] : v[1][0], odd ? v[0][1] : v[1][1], odd ? v[0][2] : v[1][2], odd ? v[0][3] : v[1][3]);
    }
  }
  fence_async_proxy();
  named_barrier_sync(barrier, 128);
  const int row = first_row + static_cast<int>(threadIdx.x) / 128 * 64;
  if (thread == 0 && row < p.m) {
#pragma unroll
    for (int b = 0; b < kTile.tile_n / 64; b++) {
      if (column + 64 * b < p.columns) tma_store_2d(map, staging + b * 8192, column + 64 * b, row);
    }
    tma_store_commit();
  }
}

}  // namespace gemm_fp8_detail

// kIndex: of kGemmFp8Tiles.
template <int kIndex, bool kGrouped>
__global__ void __launch_bounds__(kGemmFp8Tiles[kIndex].threads(), 1)
    gemm_fp8_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                    const __grid_constant__ CUtensorMap scale_map, const __grid_constant__ CUtensorMap out_map,
                    const __grid_constant__ GemmFp8Params p) {
  using namespace hopper;
  using namespace gemm_fp8_detail;
  constexpr GemmFp8Tile kTile = kGemmFp8Tiles[kIndex];
  constexpr int kWarpgroups = kTile.warpgroups, kN = kTile.part_n(), kSteps = kTile.steps(), kGroup = kTile.group;
  constexpr int kScaleSpan = kScaleBlocks<kTile>;
  constexpr int kTemps = kTile.temps, kSlices = kTile.slices;
  static_assert((kTemps == 1 || kTemps == 2) && kScaleSpan <= 2);
  static_assert(32 % (kSlices * kTile.unroll) == 0 && kSlices % kGroup == 0);  // w's scales come for 32 blocks at once
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t barriers[2 * kGemmFp8MaxStages];
  constexpr uint32_t kWSlice = kTile.tile_n * kBlockRow, kWStage = kSlices * kWSlice;
  const uint32_t full = uniform(kept_shared_address(barriers)), empty = full + 8 * kGemmFp8MaxStages;
  // First, of grouped problems, the queue of tiles and their table.
  int* tiles_before = reinterpret_cast<int*>(shared_raw + TileQueue::kBytes);
  const uint32_t table = kGrouped ? TileQueue::kBytes + static_cast<uint32_t>(p.table.experts + 1) * 4 : 0;
  const uint32_t x_ring = (uniform(kept_shared_address(shared_raw)) + table + 1023) & ~1023u;
  const uint32_t x_slice = static_cast<uint32_t>(p.tile_m) * kBlockRow, x_stage = kSlices * x_slice;
  const uint32_t w_ring = x_ring + static_cast<uint32_t>(p.stages) * x_stage;
  const uint32_t scale_slice = static_cast<uint32_t>(p.scale_rows) * 4;
  const uint32_t scale_stage = (kSlices * scale_slice + 127) & ~127u;
  const uint32_t scale_ring = w_ring + static_cast<uint32_t>(p.stages) * kWStage;

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int warp = uniform(thread / 32);  // the compiler sees that a warp takes one branch
  const int cluster = kGrouped ? p.cluster_n : p.cluster_m;
  const int rank = cluster > 1 ? uniform(static_cast<int>(cluster_rank())) : 0;
  const int first_tile = static_cast<int>(blockIdx.x) / cluster;
  const int clusters = static_cast<int>(gridDim.x) / cluster;
  TileQueue queue(shared_raw, kGrouped ? p.tickets : nullptr, cluster, clusters);
  TileWalk<kGrouped> walk{p, {p.table, tiles_before, p.tile_m}, rank};

  if (lane == 0 && warp == kWarpgroups * 4) prefetch_tensor_map(&w_map);
  if (lane == 0 && warp == kWarpgroups * 4 + 1) {
    prefetch_tensor_map(&x_map);
    prefetch_tensor_map(&scale_map);
  }
  if (thread == 0) {
    for (int s = 0; s < p.stages; s++) {
      mbarrier_init(&barriers[s], 2);  // w's bytes, and those of x and its scales
      mbarrier_init(&barriers[kGemmFp8MaxStages + s], static_cast<uint32_t>(4 * kWarpgroups * cluster));
    }
    if constexpr (kGrouped) queue.init(4 * kWarpgroups + 2);
    mbarrier_init_fence();
  }
  if constexpr (kGrouped) {
    wait_for_predecessors();  // who counts the experts' rows
    count_tiles(p.table, p.tile_m, p.n_tiles, tiles_before);
  }
  if (cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  launch_dependents();

  if (warp >= kWarpgroups * 4) {
    if constexpr (kWarpgroups > 1) lower_registers<40>();
    // A whole warp walks and one lane issues: so the compiler sees that the copy engine's operands are the same for
    // all.
    const int role = warp - kWarpgroups * 4;
    RingPosition at;
    at.phase = 1;
    if (role == 0) {
      // w: each CTA of a cluster copies its share of the rows to all of them.
      const bool once = kGrouped ? p.w_once : p.m <= 64 * kWarpgroups;  // each row of w is asked for by one tile
      const uint64_t policy = once ? evict_first_policy() : evict_normal_policy();
      const int share = kTile.tile_n / p.cluster_m;
      const auto mask = static_cast<uint16_t>((1 << p.cluster_m) - 1);
      const int first_row = kGrouped ? 0 : rank * share;
      const uint32_t ring = w_ring + static_cast<uint32_t>(first_row) * kBlockRow;
      for (int tile = first_tile; tile < walk.count(); tile = queue.next(tile)) {
        const int row = walk.at(tile, kTile.tile_n).w_row + first_row;
        for (int stage = 0; stage < p.k_stages; stage++) {
          const uint32_t bar = full + 8 * at.slot, to = ring + static_cast<uint32_t>(at.slot) * kWStage;
          mbarrier_wait(empty + 8 * at.slot, at.phase);
          if (elect_one()) {
            mbarrier_arrive_expect(bar, kWStage);
            if constexpr (kTile.permuted) {
              static_assert(!kTile.permuted || kSlices == 1);
              if (p.cluster_m == 1) {
                tma_load_5d(to, &w_map, bar, stage * 128, row / 32, policy);
              } else {
                tma_load_5d_multicast(to, &w_map, bar, stage * 128, row / 32, mask, policy);
              }
            } else if (p.cluster_m == 1) {
              tma_load_3d(to, &w_map, bar, 0, row, stage * kSlices, policy);
            } else {
#pragma unroll
              for (int j = 0; j < kSlices; j++) {
                tma_load_3d_multicast(to + j * kWSlice, &w_map, bar, 0, row, stage * kSlices + j, mask, policy);
              }
            }
          }
          __syncwarp();
          at.step(p.stages);
          if (kGrouped && stage == 0 && rank == 0) queue.publish();
        }
      }
      if (kGrouped && rank == 0) queue.finish();
    } else if (role == 1) {
      const uint64_t policy = p.m <= 512 ? evict_last_policy() : evict_normal_policy();
      const bool whole = p.x_load == p.tile_m;  // slices lie end to end
      const uint32_t bytes = kSlices * (static_cast<uint32_t>(p.x_load) * kBlockRow + scale_slice);
      wait_for_predecessors();
      for (int tile = first_tile; tile < walk.count(); tile = queue.next(tile)) {
        const int row = walk.at(tile, kTile.tile_n).row;
        for (int stage = 0; stage < p.k_stages; stage++) {
          const uint32_t bar = full + 8 * at.slot, to = x_ring + static_cast<uint32_t>(at.slot) * x_stage;
          mbarrier_wait(empty + 8 * at.slot, at.phase);
          if (elect_one()) {
            mbarrier_arrive_expect(bar, bytes);
            if (kGrouped && cluster > 1) {  // each CTA copies its share of the rows to all
              const int share = p.tile_m / cluster;
              tma_load_3d_multicast(to + static_cast<uint32_t>(rank * share) * kBlockRow, &x_map, bar, 0,
                                    row + rank * share, stage, static_cast<uint16_t>((1 << cluster) - 1), policy);
            } else if (whole) {
              tma_load_3d(to, &x_map, bar, 0, row, stage * kSlices, policy);
            } else {
#pragma unroll
              for (int j = 0; j < kSlices; j++) {
                tma_load_3d(to + j * x_slice, &x_map, bar, 0, row, stage * kSlices + j, policy);
              }
            }
            tma_load_2d(scale_ring + static_cast<uint32_t>(at.slot) * scale_stage, &scale_map, bar,
                        kGrouped ? row & ~3 : row, stage * kSlices, policy);
          }
          __syncwarp();
          at.step(p.stages);
        }
      }
    }
    __syncwarp();
  } else {
    if constexpr (kWarpgroups > 1) raise_registers<232>();
    const int warpgroup = warp / 4;
    const int row = warp * 16 + lane / 4;  // this thread's first row in the tile
    const uint64_t a0 = k_major_descriptor(x_ring + static_cast<uint32_t>(warpgroup) * 64 * kBlockRow);
    const uint64_t b0 = k_major_descriptor(w_ring);
    const uint32_t own_scales = scale_ring + static_cast<uint32_t>(row) * 4;
    float acc[kTile.tile_n / 2];
    float temp[kTemps][kGroup][kN / 2];
#pragma unroll
    for (int t = 0; t < kTemps; t++) {
#pragma unroll
      for (int g = 0; g < kGroup; g++) {
#pragma unroll
        for (int i = 0; i < kN / 2; i++) temp[t][g][i] = 0.0f;
      }
    }
    WeightScales<kTile> w_scales;
    // Behind the scales, each warpgroup's outputs: 64 columns of 64 rows after each other, in swizzled rows.
    const uint32_t staging_at = (scale_ring + static_cast<uint32_t>(p.stages) * scale_stage + 1023) & ~1023u;
    uint8_t* staging = shared_raw + (staging_at - shared_address(shared_raw)) + warpgroup * (64 * kTile.tile_n * 2);

    // A stage is free once every warp that reads it says so to every CTA that fills it.
    const auto release = [&](int slot) {
      if (cluster > 1) {
        if (lane < cluster) mbarrier_arrive_remote(empty + 8 * slot, static_cast<uint32_t>(lane));
      } else if (lane == 0) {
        mbarrier_arrive(empty + 8 * slot);
      }
    };
    // Where an expert's last tile has at most 64 rows both warpgroups take these, each one part of the columns: half
    // the tensor work, and one folds while the other multiplies as ever.
    constexpr bool kHalves = kGrouped && kWarpgroups == 2 && kTile.parts == 2 && kSlices == 1 && kScaleSpan == 1;
    [[maybe_unused]] const auto half_stage = [&](int stage, int slot, uint32_t scales) {
      const uint64_t a = k_major_descriptor(x_ring) + static_cast<uint32_t>(slot) * (x_stage >> 4);
      const uint64_t b =
          b0 + static_cast<uint32_t>(slot) * (kWStage >> 4) + static_cast<uint32_t>(warpgroup) * (kN * kBlockRow >> 4);
      auto& to = temp[0][0];
      pin_registers(to);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) wgmma_e4m3<kN>(to, a + 2 * k, b + 2 * k, k > 0);
      wgmma_commit();
      const float w0 = w_scales.at(0, 0, stage), w1 = w_scales.at(kTile.parts - 1, 0, stage);
      const uint32_t from = scales + static_cast<uint32_t>(slot) * scale_stage;
      const float s0 = load_shared(from), s1 = load_shared(from + 32);
      wgmma_wait<0>();
      pin_registers(to);
      release(slot);
      const float w = warpgroup == 0 ? w0 : w1;
      const float scale[2] = {numerics::fmul(s0, w), numerics::fmul(s1, w)};
#pragma unroll
      for (int i = 0; i < kN / 2; i++) acc[i] = numerics::ffma(to[i], scale[i / 2 % 2], acc[i]);
    };
    // Step i of a stage: part i % parts of the slices from i / parts · group on. t: which set of p takes it.
    const auto issue = [&](int t, int i, int slot) {
      const int slice = i / kTile.parts * kGroup, part = i % kTile.parts;
      const uint64_t a = a0 + static_cast<uint32_t>(slot) * (x_stage >> 4) + slice * (x_slice >> 4);
      const uint64_t b =
          b0 + static_cast<uint32_t>(slot) * (kWStage >> 4) + slice * (kWSlice >> 4) + part * (kN * kBlockRow >> 4);
      auto& to = temp[t];
#pragma unroll
      for (int g = 0; g < kGroup; g++) pin_registers(to[g]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int g = 0; g < kGroup; g++) {
          wgmma_e4m3<kN>(to[g], a + g * (x_slice >> 4) + 2 * k, b + g * (kWSlice >> 4) + 2 * k, k > 0);
        }
      }
      wgmma_commit();
    };
    struct Scales {
      float x[kGroup][2];
    };
    uint32_t tile_scales = own_scales;  // scales arrive from a multiple of four rows on
    const auto load_scales = [&](int i, int slot) {
      Scales s;
#pragma unroll
      for (int g = 0; g < kGroup; g++) {
        const uint32_t at = tile_scales + static_cast<uint32_t>(slot) * scale_stage +
                            static_cast<uint32_t>(i / kTile.parts * kGroup + g) * scale_slice;
        s.x[g][0] = load_shared(at);
        s.x[g][1] = load_shared(at + 32);
      }
      return s;
    };
    const auto fold = [&](int t, int i, int stage, int column, const Scales& s) {
      constexpr int kUnits = kUnit<kTile>;
      const int part = i % kTile.parts;
#pragma unroll
      for (int g = 0; g < kGroup; g++) {
        const int k_block = stage * kSlices + i / kTile.parts * kGroup + g;
        // A block past K has p = +0, and N16 folds none: a scale of -0 makes the fold the identity, without a branch
        // (which would make the compiler wait for the multiplications in flight).
        const bool past = kSlices > 1 && k_block >= p.k_blocks;
        float scale[kScaleSpan][2];
#pragma unroll
        for (int b = 0; b < kScaleSpan; b++) {
          const float w = w_scales.at(part, b, k_block);
          scale[b][0] = past ? -0.0f : numerics::fmul(s.x[g][0], w);
          scale[b][1] = past ? -0.0f : numerics::fmul(s.x[g][1], w);
        }
        // The first unit of the tile that the second block's scale is for.
        const int second = (128 * (WeightScales<kTile>::first_block(column, part) + 1) - column) / kUnits;
        const auto& from = temp[t][g];
#pragma unroll
        for (int q = 0; q < kN / 8; q++) {
          const int tile_q = part * (kN / 8) + q;
          const int unit = tile_q * 8 / kUnits;
          const bool later = kScaleSpan > 1 && unit >= second;
#pragma unroll
          for (int h = 0; h < 2; h++) {
            float w = scale[0][h];
            if constexpr (kScaleSpan > 1) w = later ? scale[1][h] : w;
            float& a = acc[4 * tile_q + 2 * h];
            float& b = acc[4 * tile_q + 2 * h + 1];
            a = numerics::ffma(from[4 * q + 2 * h], w, a);
            b = numerics::ffma(from[4 * q + 2 * h + 1], w, b);
          }
        }
      }
    };
    const auto pin_temp = [&](int t) {
#pragma unroll
      for (int g = 0; g < kGroup; g++) pin_registers(temp[t][g]);
    };

    if (first_tile < walk.count()) w_scales.ask(p, walk.at(first_tile, kTile.tile_n), 0, lane);
    wait_for_predecessors();  // before the first write
    RingPosition at;
    for (int tile = first_tile, after; tile < walk.count(); tile = after) {
      const Tile here = walk.at(tile, kTile.tile_n);
      after = queue.next(tile);
      const int column = here.column;
      if constexpr (kGrouped) tile_scales = own_scales + static_cast<uint32_t>(here.row % 4) * 4;
      // w's scales of the blocks from `stage` on, at the first stage of each 32 blocks.
      const auto next_scales = [&](int stage) {
        if (stage * kSlices % 32 != 0) return;
        w_scales.advance();
        const int chunk = stage * kSlices / 32 + 1;
        if (chunk * 32 < p.k_blocks) {
          w_scales.ask(p, here, chunk, lane);
        } else if (after < walk.count()) {
          w_scales.ask(p, walk.at(after, kTile.tile_n), 0, lane);
        }
      };
#pragma unroll
      for (int i = 0; i < kTile.tile_n / 2; i++) acc[i] = 0.0f;

      if constexpr (kHalves) {
        if (here.row_end - here.row <= 64) {
          const int half_row = warp % 4 * 16 + lane / 4;
          const uint32_t half_scales = scale_ring + static_cast<uint32_t>(half_row + here.row % 4) * 4;
          for (int stage = 0; stage < p.k_stages; stage++) {
            next_scales(stage);
            mbarrier_wait(full + 8 * at.slot, at.phase);
            half_stage(stage, at.slot, half_scales);
            at.step(p.stages);
          }
          store_tile<kTile, kN>(acc, p, here, half_row, column + warpgroup * kN);
          continue;
        }
      }
      if constexpr (kTemps == 1) {
        for (int stage = 0; stage < p.k_stages; stage++) {
          next_scales(stage);
          mbarrier_wait(full + 8 * at.slot, at.phase);
#pragma unroll
          for (int i = 0; i < kSteps; i++) {
            issue(0, i, at.slot);
            const Scales s = load_scales(i, at.slot);
            wgmma_wait<0>();
            pin_temp(0);
            if (i + 1 == kSteps) release(at.slot);
            fold(0, i, stage, column, s);
          }
          at.step(p.stages);
        }
      } else {
        // Some stages at once: each step is folded while the one after it is multiplied. (Over a loop's edge the
        // compiler would wait for multiplications in flight.)
        const auto run_stages = [&](int stage, auto count) {
          constexpr int kStages = decltype(count)::value, kAll = kStages * kSteps;
          next_scales(stage);
          RingPosition at_stage[kStages];
          at_stage[0] = at;
#pragma unroll
          for (int u = 1; u < kStages; u++) {
            at_stage[u] = at_stage[u - 1];
            at_stage[u].step(p.stages);
          }
          mbarrier_wait(full + 8 * at.slot, at.phase);
          issue(0, 0, at.slot);
#pragma unroll
          for (int t = 0; t < kAll; t++) {
            const int u = t / kSteps, i = t % kSteps, after = (t + 1) / kSteps;
            const Scales s = load_scales(i, at_stage[u].slot);
            if (t + 1 < kAll) {
              if ((t + 1) % kSteps == 0) mbarrier_wait(full + 8 * at_stage[after].slot, at_stage[after].phase);
              issue((t + 1) % 2, (t + 1) % kSteps, at_stage[after].slot);
              wgmma_wait<1>();
            } else {
              wgmma_wait<0>();
            }
            pin_temp(t % 2);
            if (i + 1 == kSteps) release(at_stage[u].slot);
            fold(t % 2, i, stage + u, column, s);
          }
          at = at_stage[kStages - 1];
          at.step(p.stages);
        };
        int stage = 0;
        for (; stage + kTile.unroll <= p.k_stages; stage += kTile.unroll) {
          run_stages(stage, std::integral_constant<int, kTile.unroll>());
        }
        for (; stage < p.k_stages; stage++) run_stages(stage, std::integral_constant<int, 1>());
      }
      if constexpr (kWarpgroups == 2 && kTile.permuted && !kGrouped) {
        if (p.staged) {
          stage_tile<kTile>(acc, p, &out_map, staging, here.row, column);
          continue;
        }
      }
      store_tile<kTile>(acc, p, here, row, column);
    }
    if (p.staged) tma_store_wait<0>();
  }
  // No CTA leaves while another may still write into its shared memory or signal its barriers.
  if (cluster > 1) cluster_sync();
}

}  // namespace isobit::cuda
