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

// d as wgmma.h lays it out; row and column0: this thread's first, the other row is 8 below.
template <int kN, Operand kind>
__device__ inline void epilogue(float (&d)[kN / 2], const GemmParams& p, int row, int column0) {
  add_bias<kN>(d, p, column0);
  const bool gated = p.epilogue == Epilogue::kSiluMul || p.epilogue == Epilogue::kGeluMul;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = row + 8 * h;
    if (r >= p.m) continue;
    const int64_t offset = static_cast<int64_t>(r) * p.columns;
    if (p.epilogue == Epilogue::kStoreF32) {
      float* out = static_cast<float*>(p.out) + offset;
#pragma unroll
      for (int q = 0; q < kN / 8; q++) {
        store_pair(out, column0 + 8 * q, p.columns, d[4 * q + 2 * h], d[4 * q + 2 * h + 1]);
      }
    } else if (p.epilogue == Epilogue::kStoreRounded) {
      uint16_t* out = static_cast<uint16_t*>(p.out) + offset;
#pragma unroll
      for (int q = 0; q < kN / 8; q++) {
        store_pair(out, column0 + 8 * q, p.columns, pack<kind>(d[4 * q + 2 * h], d[4 * q + 2 * h + 1]));
      }
    } else if (p.epilogue == Epilogue::kAddResidual) {
      float* out = static_cast<float*>(p.out) + offset;
      constexpr int kBatch = kN / 8 < 8 ? kN / 8 : 8;  // loads in flight before the first store
#pragma unroll
      for (int q0 = 0; q0 < kN / 8; q0 += kBatch) {
        float2 old[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
          if (q0 + i < kN / 8) old[i] = load_pair(out, column0 + 8 * (q0 + i), p.columns);
        }
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
          if (q0 + i >= kN / 8) continue;
          const int q = q0 + i;
          store_pair(out, column0 + 8 * q, p.columns, numerics::fadd(old[i].x, d[4 * q + 2 * h]),
                     numerics::fadd(old[i].y, d[4 * q + 2 * h + 1]));
        }
      }
    } else if (gated) {
      if constexpr (kN % 16 == 0) {
        // Eight columns of gate, then the same eight of up: the output's column is half of the gate's.
        uint16_t* out = static_cast<uint16_t*>(p.out) + offset;
        const int in_block = 2 * (static_cast<int>(threadIdx.x) % 4);
        const int first = (column0 - in_block) / 2 + in_block;
#pragma unroll
        for (int q = 0; q < kN / 8; q += 2) {
          float v[2];
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float gate = d[4 * q + 2 * h + i], up = d[4 * q + 4 + 2 * h + i];
            v[i] = numerics::fmul(p.epilogue == Epilogue::kSiluMul ? silu(gate) : gelu_tanh(gate), up);
          }
          store_pair(out, first + 4 * q, p.columns, pack<kind>(v[0], v[1]));
        }
      }
    }
  }
}

}  // namespace gemm_detail

// Two warpgroups need more registers than an even share; the third, which only feeds them, gives its own away.
constexpr int gemm_threads(int warpgroups) { return warpgroups == 1 ? 160 : 128 * warpgroups + 128; }

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
      mbarrier_init(&barriers[s], 1);
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
    if (thread == kWarpgroups * 128) {
      const uint64_t w_policy = p.m <= 64 * kWarpgroups ? evict_first_policy() : evict_normal_policy();
      const uint64_t x_policy = evict_last_policy();
      const int x_part = p.x_rows / p.cluster_n, w_part = kN / p.cluster_m;
      uint16_t x_mask = 0, w_mask = 0;
      for (int i = 0; i < p.cluster_n; i++) x_mask = static_cast<uint16_t>(x_mask | 1 << (rank_m + i * p.cluster_m));
      for (int i = 0; i < p.cluster_m; i++) w_mask = static_cast<uint16_t>(w_mask | 1 << (i + rank_n * p.cluster_m));
      const uint32_t stage_bytes = kSlices * (x_slice + kWSlice);

      auto load_w = [&](int slot, int stage, int n0) {
        for (int j = 0; j < kSlices; j++) {
          const uint32_t to = w_ring + static_cast<uint32_t>(slot * kSlices + j) * kWSlice +
                              static_cast<uint32_t>(rank_m * w_part) * kSliceRow;
          const int k = (stage * kSlices + j) * 64, row = n0 + rank_m * w_part;
          if (p.cluster_m == 1) {
            tma_load_2d(to, &w_map, full + 8 * slot, k, row, w_policy);
          } else {
            tma_load_2d_multicast(to, &w_map, full + 8 * slot, k, row, w_mask, w_policy);
          }
        }
      };
      auto load_x = [&](int slot, int stage, int m0) {
        for (int j = 0; j < kSlices; j++) {
          const uint32_t to = x_ring + static_cast<uint32_t>(slot * kSlices + j) * x_slice +
                              static_cast<uint32_t>(rank_n * x_part) * kSliceRow;
          const int k = (stage * kSlices + j) * 64, row = m0 + rank_n * x_part;
          if (p.cluster_n == 1) {
            tma_load_2d(to, &x_map, full + 8 * slot, k, row, x_policy);
          } else {
            tma_load_2d_multicast(to, &x_map, full + 8 * slot, k, row, x_mask, x_policy);
          }
        }
      };

      int slot = 0;
      uint32_t phase = 0;
      bool first = true;
      for (int tile = first_cluster; tile < walk.count(); tile += clusters) {
        int mc, nc;
        walk.at(tile, mc, nc);
        const int m0 = (mc * p.cluster_m + rank_m) * 64 * kWarpgroups;
        const int n0 = (nc * p.cluster_n + rank_n) * kN;
        int stage = 0;
        if (first) {
          // The ring's first round: weights do not wait for the kernel before this one, activations do.
          first = false;
          const int ahead = min(p.stages, p.k_stages);
          for (int i = 0; i < ahead; i++) {
            mbarrier_arrive_expect(full + 8 * i, stage_bytes);
            load_w(i, i, n0);
          }
          wait_for_predecessors();
          for (int i = 0; i < ahead; i++) load_x(i, i, m0);
          stage = ahead;
          slot = ahead == p.stages ? 0 : ahead;
          phase = ahead == p.stages ? 1 : 0;
        }
        for (; stage < p.k_stages; stage++) {
          mbarrier_wait(empty + 8 * slot, phase ^ 1);
          mbarrier_arrive_expect(full + 8 * slot, stage_bytes);
          load_w(slot, stage, n0);
          load_x(slot, stage, m0);
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
