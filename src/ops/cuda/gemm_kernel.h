#pragma once
// The GEMM kernel (rule N7): out[m, n] = Σ_k x[m, k]·w[n, k], each output one chain of wgmma k16 steps over K
// ascending.
//
// One form for all sizes. A CTA has one or two warpgroups of tensor work, each with 64 rows of x as the wgmma's M side
// and kN rows of w as its N side, and one warp that keeps a ring of shared-memory stages full through the copy engine.
// The CTA is persistent: the ring runs on from tile to tile, so the next tile's operands arrive during an epilogue.
//   few rows of x (M ≤ 64): kN small enough that one wave of CTAs covers N. Only round8(M) rows of x are loaded; the
//     other rows of the 64 read whatever follows in shared memory, and their results are dropped. The bytes of w bound
//     the time (4.3 TB/s); they are asked for before the kernel waits for its predecessor.
//   many rows: 128×256 tiles, 128 accumulators a thread, a cluster of two CTAs along M takes each half of w's tile and
//     multicasts it: per k64 slice 48 KB in for 1024 cycles of tensor work, 32 KB of it from the L2.
#include <cuda.h>

#include "ops/cuda/device_math.h"
#include "ops/cuda/gemm_params.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/registers.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/hopper/wgmma.h"

namespace isobit::cuda {

namespace gemm_detail {

using numerics::Operand;

template <Operand kind>
__device__ inline uint32_t pack(float low, float high) {
  return kind == Operand::kBF16 ? pack_bf16(low, high) : pack_f16(low, high);
}

// Tiles in the order in which they are walked: groups of group_m clusters along M, in a group all of N.
struct TileWalk {
  const GemmParams& p;
  __device__ int count() const { return p.m_clusters * p.n_clusters; }
  __device__ void at(int index, int& m_cluster, int& n_cluster) const {
    const int per_group = p.group_m * p.n_clusters;
    const int group = index / per_group, in_group = index % per_group;
    const int first = group * p.group_m;
    const int size = min(p.group_m, p.m_clusters - first);
    m_cluster = first + in_group % size;
    n_cluster = in_group / size;
  }
};

// Two neighbouring columns of a row. Odd widths break the pairs' alignment, so they go one by one.
__device__ inline void store_pair(float* row, int column, int columns, float a, float b) {
  if ((columns & 1) == 0) {
    if (column < columns) *reinterpret_cast<float2*>(row + column) = make_float2(a, b);
    return;
  }
  if (column < columns) row[column] = a;
  if (column + 1 < columns) row[column + 1] = b;
}
__device__ inline void store_pair(uint16_t* row, int column, int columns, uint32_t packed) {
  if ((columns & 1) == 0) {
    if (column < columns) *reinterpret_cast<uint32_t*>(row + column) = packed;
    return;
  }
  if (column < columns) row[column] = static_cast<uint16_t>(packed);
  if (column + 1 < columns) row[column + 1] = static_cast<uint16_t>(packed >> 16);
}
__device__ inline float2 load_pair(const float* row, int column, int columns) {
  if ((columns & 1) == 0 && column < columns) return *reinterpret_cast<const float2*>(row + column);
  return make_float2(column < columns ? row[column] : 0.0f, column + 1 < columns ? row[column + 1] : 0.0f);
}

// Among the four lanes of a quad: lane i's v[j] becomes lane j's v[i].
__device__ inline void transpose_quad(uint32_t (&v)[4], int quad_lane) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (quad_lane & step) != 0;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const int low = step == 1 ? 2 * k : k, high = low + step;
      const uint32_t got = __shfl_xor_sync(0xffffffff, upper ? v[low] : v[high], step);
      (upper ? v[low] : v[high]) = got;
    }
  }
}

// One row's 16-bit outputs of a thread: packed[q] is columns column0 + 8q + {0, 1}, column0 this thread's first. Lanes
// of a quad trade so that each writes 16 bytes. Every thread of the warp calls; `active`: its row exists.
// aligned: out stands at 16 bytes.
template <int kBlocks>
__device__ inline void store_row(const uint32_t (&packed)[kBlocks], uint16_t* row, int column0, int columns,
                                 bool aligned, bool active) {
  const int quad_lane = static_cast<int>(threadIdx.x) % 4;
  constexpr int kWide = kBlocks / 4 * 4;
  const bool wide = kWide > 0 && aligned && columns % 8 == 0;
  if (wide) {
#pragma unroll
    for (int q = 0; q < kWide; q += 4) {
      uint32_t v[4] = {packed[q], packed[q + 1], packed[q + 2], packed[q + 3]};
      transpose_quad(v, quad_lane);
      const int column = column0 - 2 * quad_lane + 8 * (q + quad_lane);
      if (active && column < columns) *reinterpret_cast<uint4*>(row + column) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
  if (!active) return;
#pragma unroll
  for (int q = 0; q < kBlocks; q++) {
    if (q >= kWide || !wide) store_pair(row, column0 + 8 * q, columns, packed[q]);
  }
}

// The same for f32 outputs: v[2q + i] is column column0 + 8q + i; neighbours trade so that each writes 16 bytes.
// add: to what is there.
template <int kBlocks>
__device__ inline void store_row(const float (&v)[2 * kBlocks], float* row, int column0, int columns, bool add,
                                 bool aligned, bool active) {
  using numerics::fadd;
  const int quad_lane = static_cast<int>(threadIdx.x) % 4;
  const bool odd = (quad_lane & 1) != 0;
  constexpr int kWide = kBlocks / 2 * 2;
  constexpr int kBatch = 8;  // loads in flight before the first store
  const bool wide = kWide > 0 && aligned && columns % 4 == 0;
  if (wide) {
#pragma unroll
    for (int q0 = 0; q0 < kWide; q0 += kBatch) {
      float4 out[kBatch / 2];
      int column[kBatch / 2];
#pragma unroll
      for (int i = 0; i < kBatch / 2; i++) {
        const int q = q0 + 2 * i;
        if (q >= kWide) continue;
        // An even lane takes block q of both, an odd one block q + 1.
        const float give0 = odd ? v[2 * q] : v[2 * q + 2], give1 = odd ? v[2 * q + 1] : v[2 * q + 3];
        const float got0 = __shfl_xor_sync(0xffffffff, give0, 1), got1 = __shfl_xor_sync(0xffffffff, give1, 1);
        out[i] =
            odd ? make_float4(got0, got1, v[2 * q + 2], v[2 * q + 3]) : make_float4(v[2 * q], v[2 * q + 1], got0, got1);
        column[i] = column0 - 2 * quad_lane + 8 * (q + (odd ? 1 : 0)) + 4 * (quad_lane / 2);
      }
      if (add) {
        float4 old[kBatch / 2];
#pragma unroll
        for (int i = 0; i < kBatch / 2; i++) {
          if (q0 + 2 * i < kWide && active && column[i] < columns) {
            old[i] = *reinterpret_cast<const float4*>(row + column[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < kBatch / 2; i++) {
          if (q0 + 2 * i >= kWide) continue;
          out[i] = make_float4(fadd(old[i].x, out[i].x), fadd(old[i].y, out[i].y), fadd(old[i].z, out[i].z),
                               fadd(old[i].w, out[i].w));
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch / 2; i++) {
        if (q0 + 2 * i < kWide && active && column[i] < columns) *reinterpret_cast<float4*>(row + column[i]) = out[i];
      }
    }
  }
  if (!active) return;
#pragma unroll
  for (int q = 0; q < kBlocks; q++) {
    if (q < kWide && wide) continue;
    float2 old = make_float2(0.0f, 0.0f);
    if (add) old = load_pair(row, column0 + 8 * q, columns);
    store_pair(row, column0 + 8 * q, columns, add ? fadd(old.x, v[2 * q]) : v[2 * q],
               add ? fadd(old.y, v[2 * q + 1]) : v[2 * q + 1]);
  }
}

template <int kN>
__device__ inline void add_bias(float (&d)[kN / 2], const GemmParams& p, int column0) {
  using numerics::fadd;
  if (p.bias == nullptr) return;
#pragma unroll
  for (int q = 0; q < kN / 8; q++) {
    const int c = column0 + 8 * q;
    const float b0 = c < p.columns ? __ldg(p.bias + c) : 0.0f;
    const float b1 = c + 1 < p.columns ? __ldg(p.bias + c + 1) : 0.0f;
    d[4 * q] = fadd(d[4 * q], b0);
    d[4 * q + 1] = fadd(d[4 * q + 1], b1);
    d[4 * q + 2] = fadd(d[4 * q + 2], b0);
    d[4 * q + 3] = fadd(d[4 * q + 3], b1);
  }
}

// d as wgmma.h lays it out; row and column0: this thread's first, the other row is 8 below. Whole warps call.
template <int kN, Operand kind>
__device__ inline void epilogue(float (&d)[kN / 2], const GemmParams& p, int row, int column0) {
  add_bias<kN>(d, p, column0);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = row + 8 * h;
    const bool active = r < p.m;
    const int64_t offset = static_cast<int64_t>(active ? r : 0) * p.columns;
    if (p.epilogue == Epilogue::kStoreF32 || p.epilogue == Epilogue::kAddResidual) {
      float v[kN / 4];
#pragma unroll
      for (int q = 0; q < kN / 8; q++) v[2 * q] = d[4 * q + 2 * h], v[2 * q + 1] = d[4 * q + 2 * h + 1];
      store_row<kN / 8>(v, static_cast<float*>(p.out) + offset, column0, p.columns,
                        p.epilogue == Epilogue::kAddResidual, p.aligned, active);
    } else if (p.epilogue == Epilogue::kStoreRounded) {
      uint32_t packed[kN / 8];
#pragma unroll
      for (int q = 0; q < kN / 8; q++) packed[q] = pack<kind>(d[4 * q + 2 * h], d[4 * q + 2 * h + 1]);
      store_row<kN / 8>(packed, static_cast<uint16_t*>(p.out) + offset, column0, p.columns, p.aligned, active);
    } else if constexpr (kN % 16 == 0) {
      // Eight columns of gate, then the same eight of up: the output's column is half of the gate's.
      const bool is_silu = p.epilogue == Epilogue::kSiluMul;
      uint32_t packed[kN / 16];
#pragma unroll
      for (int q = 0; q < kN / 16; q++) {
        float v[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float gate = d[8 * q + 2 * h + i], up = d[8 * q + 4 + 2 * h + i];
          v[i] = numerics::fmul(is_silu ? silu(gate) : gelu_tanh(gate), up);
        }
        packed[q] = pack<kind>(v[0], v[1]);
      }
      const int in_block = 2 * (static_cast<int>(threadIdx.x) % 4);
      store_row<kN / 16>(packed, static_cast<uint16_t*>(p.out) + offset, (column0 - in_block) / 2 + in_block, p.columns,
                         p.aligned, active);
    }
  }
}

}  // namespace gemm_detail

// Two warpgroups need more registers than an even share; the third, which only feeds them, gives its own away.
constexpr int gemm_threads(int warpgroups) { return warpgroups == 1 ? 192 : 128 * warpgroups + 128; }

// Grid: clusters of cluster_m · cluster_n CTAs, rank = m index + cluster_m · n index.
template <int kWarpgroups, int kN, int kSlices, numerics::Operand kKind>
__global__ void __launch_bounds__(gemm_threads(kWarpgroups), 1)
    gemm_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                const __grid_constant__ GemmParams p) {
  using namespace hopper;
  using namespace gemm_detail;
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t barriers[2 * kGemmMaxStages];
  constexpr uint32_t kSliceRow = 128;  // bytes of 64 elements
  constexpr uint32_t kWSlice = kN * kSliceRow;
  const uint32_t full = kept_shared_address(barriers), empty = full + 8 * kGemmMaxStages;
  const uint32_t x_ring = (kept_shared_address(shared_raw) + 1023) & ~1023u;
  const uint32_t x_slice = static_cast<uint32_t>(p.x_rows) * kSliceRow;
  const uint32_t w_ring = x_ring + static_cast<uint32_t>(p.stages) * kSlices * x_slice;

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(0xffffffff, thread / 32, 0);  // the compiler sees that a warp takes one branch
  const int cluster_ctas = p.cluster_m * p.cluster_n;
  const int rank = cluster_ctas > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int rank_m = rank % p.cluster_m, rank_n = rank / p.cluster_m;
  const int first_cluster = static_cast<int>(blockIdx.x) / cluster_ctas;
  const int clusters = static_cast<int>(gridDim.x) / cluster_ctas;
  const int sharers = p.cluster_m + p.cluster_n - 1;  // CTAs that write into this one's stages
  const TileWalk walk{p};

  if (thread == 0) {
    for (int s = 0; s < p.stages; s++) {
      mbarrier_init(&barriers[s], 2);  // the weights' and the activations' bytes
      mbarrier_init(&barriers[kGemmMaxStages + s], static_cast<uint32_t>(4 * kWarpgroups * sharers));
    }
    mbarrier_init_fence();
  }
  if (cluster_ctas > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  launch_dependents();

  if (warp >= kWarpgroups * 4) {
    if constexpr (kWarpgroups > 1) lower_registers<40>();
    const int role = warp - kWarpgroups * 4;  // one warp asks for the weights, one for the activations
    if (thread % 32 == 0 && role < 2) {
      const bool is_w = role == 0;
      const CUtensorMap* map = is_w ? &w_map : &x_map;
      // Weights that one row of tiles streams pass through the L2 once; few activations are to stay there.
      const uint64_t policy = is_w ? (p.m <= 64 * kWarpgroups ? evict_first_policy() : evict_normal_policy())
                                   : (p.m <= 512 ? evict_last_policy() : evict_normal_policy());
      const uint32_t slice_bytes = is_w ? kWSlice : x_slice;
      const int sharing = is_w ? p.cluster_m : p.cluster_n;  // CTAs that each load a part of the tile for all
      const int part_rows = (is_w ? kN : p.x_rows) / sharing, part = is_w ? rank_m : rank_n;
      uint16_t mask = 0;
      for (int i = 0; i < sharing; i++) {
        mask = static_cast<uint16_t>(mask | 1 << (is_w ? i + rank_n * p.cluster_m : rank_m + i * p.cluster_m));
      }
      const uint32_t ring = (is_w ? w_ring : x_ring) + static_cast<uint32_t>(part * part_rows) * kSliceRow;
      const uint32_t stage_bytes = kSlices * slice_bytes;

      // Weights do not wait for the kernel before this one, activations do.
      if (!is_w) wait_for_predecessors();
      int slot = 0;
      uint32_t phase = 1;
      for (int tile = first_cluster; tile < walk.count(); tile += clusters) {
        int mc, nc;
        walk.at(tile, mc, nc);
        const int first_row = is_w ? (nc * p.cluster_n + rank_n) * kN : (mc * p.cluster_m + rank_m) * 64 * kWarpgroups;
        const int row = first_row + part * part_rows;
        for (int stage = 0; stage < p.k_stages; stage++) {
          const uint32_t bar = full + 8 * slot, to = ring + static_cast<uint32_t>(slot) * stage_bytes;
          mbarrier_wait(empty + 8 * slot, phase);
          mbarrier_arrive_expect(bar, stage_bytes);
          if (sharing == 1) {
            tma_load_3d(to, map, bar, 0, row, stage * kSlices, policy);
          } else {
#pragma unroll
            for (int j = 0; j < kSlices; j++) {
              tma_load_3d_multicast(to + j * slice_bytes, map, bar, 0, row, stage * kSlices + j, mask, policy);
            }
          }
          if (++slot == p.stages) slot = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    if constexpr (kWarpgroups > 1) raise_registers<232>();
    const int warpgroup = warp / 4, lane = thread % 32;
    // A stage is free once every warp that reads it says so to every CTA that fills it.
    const int sharer = lane < p.cluster_m ? lane + rank_n * p.cluster_m : lane - p.cluster_m;
    const int sharer_rank =
        lane < p.cluster_m ? sharer : (sharer < rank_n ? sharer : sharer + 1) * p.cluster_m + rank_m;
    auto release = [&](int slot) {
      if (cluster_ctas > 1) {
        if (lane < sharers) mbarrier_arrive_remote(empty + 8 * slot, static_cast<uint32_t>(sharer_rank));
      } else if (lane == 0) {
        mbarrier_arrive(empty + 8 * slot);
      }
    };

    const uint64_t a0 = k_major_descriptor(x_ring + static_cast<uint32_t>(warpgroup) * 64 * kSliceRow);
    const uint64_t b0 = k_major_descriptor(w_ring);
    wait_for_predecessors();  // before the first write or residual read
    int slot = 0;
    uint32_t phase = 0;
    for (int tile = first_cluster; tile < walk.count(); tile += clusters) {
      float d[kN / 2] = {};
      [[maybe_unused]] float sum[kN <= 128 ? kN / 2 : 1];
      int previous = -1;
      for (int start = 0; start < p.k_stages; start += p.chunk_stages) {
        const int end = min(start + p.chunk_stages, p.k_stages);
        for (int stage = start; stage < end; stage++) {
          mbarrier_wait(full + 8 * slot, phase);
          const uint64_t a = a0 + static_cast<uint32_t>(slot) * (kSlices * x_slice >> 4);
          const uint64_t b = b0 + static_cast<uint32_t>(slot) * (kSlices * kWSlice >> 4);
          pin_registers(d);
          wgmma_fence();
#pragma unroll
          for (int j = 0; j < kSlices; j++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
              wgmma<kN, kKind>(d, a + j * (x_slice >> 4) + 2 * k, b + j * (kWSlice >> 4) + 2 * k, true);
            }
          }
          wgmma_commit();
          wgmma_wait<1>();  // all but this stage's steps are done
          if (previous >= 0) release(previous);
          previous = slot;
          if (++slot == p.stages) slot = 0, phase ^= 1;
        }
        if constexpr (kN <= 128) {
          if (p.chunk_stages < p.k_stages) {
            wgmma_wait<0>();
            pin_registers(d);
#pragma unroll
            for (int i = 0; i < kN / 2; i++) {
              sum[i] = start == 0 ? d[i] : numerics::fadd(sum[i], d[i]);
              d[i] = 0.0f;
            }
          }
        }
      }
      wgmma_wait<0>();
      pin_registers(d);
      release(previous);
      if constexpr (kN <= 128) {
        if (p.chunk_stages < p.k_stages) {
#pragma unroll
          for (int i = 0; i < kN / 2; i++) d[i] = sum[i];
        }
      }
      int mc, nc;
      walk.at(tile, mc, nc);
      const int row = (mc * p.cluster_m + rank_m) * 64 * kWarpgroups + warp * 16 + lane / 4;
      const int column0 = (nc * p.cluster_n + rank_n) * kN + 2 * (lane % 4);
      epilogue<kN, kKind>(d, p, row, column0);
    }
  }
  // No CTA leaves while another may still write into its shared memory or signal its barriers.
  if (cluster_ctas > 1) cluster_sync();
}

}  // namespace isobit::cuda
