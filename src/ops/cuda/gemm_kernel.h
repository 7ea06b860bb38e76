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
//   one or two rows may come unnormalised: every CTA takes their RMSNorm for itself and keeps all of x.
#include <cuda.h>

#include <type_traits>

#include "numerics/norm.h"
#include "numerics/rope.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/gemm_params.h"
#include "ops/cuda/gemm_plan.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/registers.h"
#include "ops/cuda/hopper/tile_store.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/hopper/warp.h"
#include "ops/cuda/hopper/wgmma.h"
#include "ops/cuda/rope_device.h"
#include "ops/cuda/silu.h"

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
  constexpr int kBatch = kWide > 16 ? 16 : 8;  // blocks whose loads are in flight before the first store
  const bool wide = kWide > 0 && aligned && columns % 4 == 0;
  if (wide) {
    // Of two neighbouring blocks an even lane takes the first of both lanes, an odd one the second.
    float* const own = row + (column0 - 2 * quad_lane + (odd ? 8 : 0) + 4 * (quad_lane / 2));
    const int left = columns - static_cast<int>(own - row);
#pragma unroll
    for (int q0 = 0; q0 < kWide; q0 += kBatch) {
      float4 old[kBatch / 2];
#pragma unroll
      for (int i = 0; i < kBatch / 2; i++) {
        const int q = q0 + 2 * i;
        old[i] = make_float4(0, 0, 0, 0);
        if (q < kWide && add && active && 8 * q < left) old[i] = *reinterpret_cast<const float4*>(own + 8 * q);
      }
#pragma unroll
      for (int i = 0; i < kBatch / 2; i++) {
        const int q = q0 + 2 * i;
        if (q >= kWide) continue;
        const float give0 = odd ? v[2 * q] : v[2 * q + 2], give1 = odd ? v[2 * q + 1] : v[2 * q + 3];
        const float got0 = __shfl_xor_sync(0xffffffff, give0, 1), got1 = __shfl_xor_sync(0xffffffff, give1, 1);
        float4 out =
            odd ? make_float4(got0, got1, v[2 * q + 2], v[2 * q + 3]) : make_float4(v[2 * q], v[2 * q + 1], got0, got1);
        if (add) {
          out = make_float4(fadd(old[i].x, out.x), fadd(old[i].y, out.y), fadd(old[i].z, out.z), fadd(old[i].w, out.w));
        }
        if (active && 8 * q < left) *reinterpret_cast<float4*>(own + 8 * q) = out;
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

// The gate's function, by the epilogue.
template <int n>
__device__ inline void activate(float (&v)[n], Epilogue epilogue) {
  if (epilogue == Epilogue::kSiluMul) return silu(v);
#pragma unroll
  for (float& x : v) x = gelu_tanh(x);
}

// Two neighbouring 16-bit outputs of block i of an accumulator's row h: with a gate, eight columns of it stand before
// the same eight of up, so that block i comes of the accumulators' blocks 2i and 2i + 1.
template <int kBlocks, Operand kind, int n>
__device__ inline void rounded_blocks(const float (&d)[n], Epilogue epilogue, int first, int h,
                                      uint32_t (&packed)[kBlocks]) {
  if (epilogue == Epilogue::kStoreRounded) {
#pragma unroll
    for (int i = 0; i < kBlocks; i++) {
      const int at = 4 * (first + i) + 2 * h;
      packed[i] = pack<kind>(d[at], d[at + 1]);
    }
    return;
  }
  float v[2 * kBlocks];
  const auto gate = [&](int i) { return 8 * (first + i / 2) + 2 * h + i % 2; };
#pragma unroll
  for (int i = 0; i < 2 * kBlocks; i++) v[i] = d[gate(i)];
  activate(v, epilogue);
#pragma unroll
  for (int i = 0; i < kBlocks; i++) {
    packed[i] =
        pack<kind>(numerics::fmul(v[2 * i], d[gate(2 * i) + 4]), numerics::fmul(v[2 * i + 1], d[gate(2 * i + 1) + 4]));
  }
}

// Outputs of a large tile leave by way of shared memory and the copy engine, under the next tile's products: each warp
// for itself, its 16 rows in pieces of 128 bytes of columns, in turns through two places of 2 KB.
struct StagedRows {
  static constexpr uint32_t kPiece = 16 * 128;
  const CUtensorMap* map;
  uint32_t staging;  // this warp's
  int row, lane;

  __device__ uint32_t place(int piece) const { return staging + static_cast<uint32_t>(piece % 2) * kPiece; }
  // Before a piece is written: the one two before it has been read.
  __device__ void begin() const {
    if (hopper::elect_one()) hopper::tma_store_wait_read<1>();
    __syncwarp();
  }
  __device__ void send(int piece, int column) const {
    hopper::fence_async_proxy();
    __syncwarp();
    if (hopper::elect_one()) {
      hopper::tma_store_2d(map, place(piece), column, row);
      hopper::tma_store_commit();
    }
    __syncwarp();
  }
};

template <int kN, Operand kind>
__device__ inline void staged_rounded(const float (&d)[kN / 2], const GemmParams& p, const StagedRows& to,
                                      int first_column) {
  const bool gated = p.epilogue != Epilogue::kStoreRounded;
  const int lane = to.lane, row = lane % 8 + lane / 8 % 2 * 8;
  const uint32_t at = static_cast<uint32_t>(row) * 128;
#pragma unroll
  for (int piece = 0; piece < kN / 64; piece++) {
    const int column = (gated ? first_column / 2 : first_column) + 64 * piece;
    if ((gated && piece >= kN / 128) || column >= p.columns) break;
    uint32_t packed[2][8];
#pragma unroll
    for (int h = 0; h < 2; h++) rounded_blocks<8, kind>(d, p.epilogue, 8 * piece, h, packed[h]);
    to.begin();
#pragma unroll
    for (int q = 0; q < 8; q += 2) {
      const uint32_t chunk = static_cast<uint32_t>((q + lane / 16) ^ (row % 8));
      hopper::store_matrices(to.place(piece) + at + chunk * 16, packed[0][q], packed[1][q], packed[0][q + 1],
                             packed[1][q + 1]);
    }
    to.send(piece, column);
  }
}

template <int kN>
__device__ inline void staged_f32(const float (&d)[kN / 2], const GemmParams& p, const StagedRows& to,
                                  int first_column) {
  using numerics::fadd;
  const bool add = p.epilogue == Epilogue::kAddResidual;
  const int lane = to.lane, quad_lane = lane % 4, row = lane / 4;
  const float* const residual =
      static_cast<const float*>(p.out) + static_cast<int64_t>(to.row + row) * p.columns + first_column + 2 * quad_lane;
  float2 old[2][8] = {};  // of this piece and the next
  const auto load = [&](int piece) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int h = i / 4, q = i % 4;
      const int column = 32 * piece + 8 * q;
      if (add && to.row + row + 8 * h < p.m && first_column + 2 * quad_lane + column < p.columns)
        old[piece % 2][i] =
            *reinterpret_cast<const float2*>(residual + static_cast<int64_t>(8 * h) * p.columns + column);
    }
  };
  load(0);
  const bool odd = row % 2 != 0;  // odd rows write two blocks further: no two rows of four meet in a bank
#pragma unroll
  for (int piece = 0; piece < kN / 32; piece++) {
    if (piece + 1 < kN / 32) load(piece + 1);
    float2 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int at = 4 * (4 * piece + i % 4) + 2 * (i / 4);
      const float2 was = old[piece % 2][i];
      v[i] = add ? make_float2(fadd(was.x, d[at]), fadd(was.y, d[at + 1])) : make_float2(d[at], d[at + 1]);
    }
    to.begin();
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int q = odd ? i % 4 ^ 2 : i % 4;
      const float2 mine = odd ? v[i ^ 2] : v[i];
      const uint32_t chunk = static_cast<uint32_t>((2 * q + quad_lane / 2) ^ row);
      hopper::store_shared_f2(to.place(piece) + static_cast<uint32_t>(row + 8 * (i / 4)) * 128 + chunk * 16 +
                                  static_cast<uint32_t>(quad_lane % 2) * 8,
                              mine.x, mine.y);
    }
    to.send(piece, first_column + 32 * piece);
  }
}

// A tile's residual into the L2, by a warp: read from memory at the tile's end it would cost four trips of 2 µs.
template <int kRows, int kN>
__device__ inline void fetch_residual(const GemmParams& p, int first_row, int first_column) {
  const uint32_t bytes = static_cast<uint32_t>(min(kN, p.columns - first_column)) * 4;
  for (int row = first_row + static_cast<int>(threadIdx.x) % 32; row < min(first_row + kRows, p.m); row += 32) {
    hopper::prefetch_l2(static_cast<const float*>(p.out) + static_cast<int64_t>(row) * p.columns + first_column, bytes);
  }
  __syncwarp();
}

// d as in `epilogue`, of a tile whose rows and columns the output's tensor map may cut.
template <int kN, Operand kind>
__device__ inline void staged_epilogue(float (&d)[kN / 2], const GemmParams& p, const StagedRows& to,
                                       int first_column) {
  add_bias<kN>(d, p, first_column + 2 * (to.lane % 4));
  if (p.epilogue == Epilogue::kStoreF32 || p.epilogue == Epilogue::kAddResidual) {
    staged_f32<kN>(d, p, to, first_column);
  } else {
    staged_rounded<kN, kind>(d, p, to, first_column);
  }
}

// d as wgmma.h lays it out; row and column0: this thread's first, the other row is 8 below; row_end: of the tile. Whole
// warps call.
template <int kN, Operand kind>
__device__ inline void epilogue(float (&d)[kN / 2], const GemmParams& p, int row, int row_end, int column0) {
  add_bias<kN>(d, p, column0);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = row + 8 * h;
    const bool active = r < row_end;
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
      uint32_t packed[kN / 16];
      constexpr int kBatch = kN / 16 % 4 == 0 ? 8 : 2;  // side by side
#pragma unroll
      for (int first = 0; first < kN / 8; first += kBatch) {
        float v[kBatch];
        const auto at = [&](int i) { return (first + i) / 2 * 8 + 2 * h + i % 2; };
#pragma unroll
        for (int i = 0; i < kBatch; i++) v[i] = d[at(i)];
        activate(v, p.epilogue);
#pragma unroll
        for (int i = 0; i < kBatch; i += 2) {
          packed[(first + i) / 2] =
              pack<kind>(numerics::fmul(v[i], d[at(i) + 4]), numerics::fmul(v[i + 1], d[at(i + 1) + 4]));
        }
      }
      const int in_block = 2 * (static_cast<int>(threadIdx.x) % 4);
      store_row<kN / 16>(packed, static_cast<uint16_t*>(p.out) + offset, (column0 - in_block) / 2 + in_block, p.columns,
                         p.aligned, active);
    }
  }
}

// Few rows: one warp's registers hold all there is, so the accumulators go through shared memory and all 128 threads
// take outputs, a pair of columns each. What a pair needs from memory is asked for before the chain begins.
struct FewPair {
  int row = 0, column = 0, at = 0;  // column of the output; at: of the (first) accumulator in the tile
  bool live = false;
  float2 old = {0.0f, 0.0f};  // the residual
  RotatedPair rotated;
};

template <int kN>
__device__ inline FewPair few_pair(const GemmParams& p, int index, int first_column) {
  const bool gated = p.epilogue == Epilogue::kSiluMul || p.epilogue == Epilogue::kGeluMul;
  const int in_row = gated ? kN / 4 : kN / 2;  // pairs
  FewPair f;
  f.row = index / in_row;
  const int c = 2 * (index - f.row * in_row);
  f.column = (gated ? first_column / 2 : first_column) + c;
  f.at = gated ? c / 8 * 16 + c % 8 : c;
  f.live = f.row < p.m && f.column < p.columns;
  if (!f.live) return f;
  if (p.epilogue == Epilogue::kAddResidual) {
    f.old = load_pair(static_cast<const float*>(p.out) + static_cast<int64_t>(f.row) * p.columns, f.column, p.columns);
  } else if (p.rotate) {
    const TokenPlace token = token_place(p.rope, f.row);
    f.live = token.slot >= 0;
    if (f.live) f.rotated = rotated_pair(p.rope, token, f.row, f.column);
  }
  return f;
}

template <Operand kind>
__device__ inline void store_few(const GemmParams& p, const FewPair& f, float2 v, float2 up) {
  using numerics::fadd, numerics::fmul;
  const int64_t offset = static_cast<int64_t>(f.row) * p.columns;
  if (p.epilogue == Epilogue::kSiluMul || p.epilogue == Epilogue::kGeluMul) {
    float gate[2] = {v.x, v.y};
    activate(gate, p.epilogue);
    store_pair(static_cast<uint16_t*>(p.out) + offset, f.column, p.columns,
               pack<kind>(fmul(gate[0], up.x), fmul(gate[1], up.y)));
    return;
  }
  if (p.bias != nullptr) {
    v.x = fadd(v.x, __ldg(p.bias + f.column));
    if (f.column + 1 < p.columns) v.y = fadd(v.y, __ldg(p.bias + f.column + 1));
  }
  if (p.rotate) {
    store_rotated(p.rope, f.rotated, f.row, v.x, v.y);
  } else if (p.epilogue == Epilogue::kStoreRounded) {
    store_pair(static_cast<uint16_t*>(p.out) + offset, f.column, p.columns, pack<kind>(v.x, v.y));
  } else {
    if (p.epilogue == Epilogue::kAddResidual) v = make_float2(fadd(f.old.x, v.x), fadd(f.old.y, v.y));
    store_pair(static_cast<float*>(p.out) + offset, f.column, p.columns, v.x, v.y);
  }
}

// staging: [m, kN + 4] floats. first: this thread's first pair. By the 128 threads of the warpgroup.
template <int kN, Operand kind>
__device__ inline void few_rows_epilogue(const float (&d)[kN / 2], const GemmParams& p, uint32_t staging,
                                         int first_column, const FewPair& first, int rows) {
  constexpr uint32_t kRow = (kN + 4) * 4;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  hopper::named_barrier_sync(1, 128);  // the tile before has been read
  if (thread < 32) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = lane / 4 + 8 * h;
      if (r >= rows) continue;
      const uint32_t to = staging + static_cast<uint32_t>(r) * kRow + static_cast<uint32_t>(lane % 4) * 8;
#pragma unroll
      for (int q = 0; q < kN / 8; q++) hopper::store_shared_f2(to + 32 * q, d[4 * q + 2 * h], d[4 * q + 2 * h + 1]);
    }
  }
  hopper::named_barrier_sync(1, 128);
  const bool gated = p.epilogue == Epilogue::kSiluMul || p.epilogue == Epilogue::kGeluMul;
  const int pairs = rows * (gated ? kN / 4 : kN / 2);
#pragma unroll 1
  for (int i = thread; i < pairs; i += 128) {
    const FewPair f = i == thread ? first : few_pair<kN>(p, i, first_column);
    if (!f.live) continue;
    const uint32_t from = staging + static_cast<uint32_t>(f.row) * kRow + static_cast<uint32_t>(f.at) * 4;
    const float2 v = hopper::load_shared_f2(from);
    store_few<kind>(p, f, v, gated ? hopper::load_shared_f2(from + 32) : v);
  }
}

// The RMSNorm of p.m rows into resident x: slices of 8 rows of 64 elements, swizzled, zeros up to `padded`. By the
// first 128 threads; thread t owns the sum's lanes 8t to 8t + 7, so that of the tree three levels lie in a thread, five
// in a warp, two between warps.
template <Operand kind>
__device__ inline void normalise_rows(const GemmParams& p, uint32_t x_base, int padded) {
  using numerics::fadd, numerics::ffma, numerics::rms_value;
  constexpr int kKept = 4;  // eights of a thread that stay in registers; a longer row is read twice
  __shared__ float warps[2][4];
  const int thread = static_cast<int>(threadIdx.x), n = p.norm_n, first = thread * 8;
  const auto load = [&](const float* from, int i, float4& a, float4& b) {
    a = b = make_float4(0, 0, 0, 0);
    if (i >= n) return;
    a = *reinterpret_cast<const float4*>(from + i);
    b = *reinterpret_cast<const float4*>(from + i + 4);
  };
  float4 w[kKept][2], x[kKept][2];
#pragma unroll
  for (int v = 0; v < kKept; v++) load(p.norm_weight, first + v * numerics::kSumLanes, w[v][0], w[v][1]);
  hopper::wait_for_predecessors();
  for (int r = 0; r < p.m; r++) {
    const int row = p.norm_rows != nullptr ? p.norm_rows[r] : r;
    const float* in = p.norm_x + static_cast<int64_t>(row < 0 ? 0 : row) * n;
#pragma unroll
    for (int v = 0; v < kKept; v++) load(in, first + v * numerics::kSumLanes, x[v][0], x[v][1]);
    float lane[8] = {};
    const auto add = [&](const float4& a, const float4& b) {
      lane[0] = ffma(a.x, a.x, lane[0]), lane[1] = ffma(a.y, a.y, lane[1]);
      lane[2] = ffma(a.z, a.z, lane[2]), lane[3] = ffma(a.w, a.w, lane[3]);
      lane[4] = ffma(b.x, b.x, lane[4]), lane[5] = ffma(b.y, b.y, lane[5]);
      lane[6] = ffma(b.z, b.z, lane[6]), lane[7] = ffma(b.w, b.w, lane[7]);
    };
#pragma unroll
    for (int v = 0; v < kKept; v++) add(x[v][0], x[v][1]);
    constexpr int kRest = kKept * numerics::kSumLanes;
    for (int i = first + kRest; i < n; i += numerics::kSumLanes) {
      float4 a, b;
      load(in, i, a, b);
      add(a, b);
    }
    float sum = fadd(fadd(fadd(lane[0], lane[1]), fadd(lane[2], lane[3])),
                     fadd(fadd(lane[4], lane[5]), fadd(lane[6], lane[7])));
#pragma unroll
    for (int h = 1; h < 32; h *= 2) sum = fadd(sum, __shfl_xor_sync(0xffffffff, sum, h));
    if (thread % 32 == 0) warps[r % 2][thread / 32] = sum;
    hopper::named_barrier_sync(1, 128);
    sum = fadd(fadd(warps[r % 2][0], warps[r % 2][1]), fadd(warps[r % 2][2], warps[r % 2][3]));
    const float scale = numerics::rms_scale(sum, n, p.norm_eps);
    const auto store = [&](int i, const float4& a, const float4& b, const float4& wa, const float4& wb) {
      if (i >= padded) return;
      uint32_t v[4] = {pack<kind>(rms_value(a.x, scale, wa.x), rms_value(a.y, scale, wa.y)),
                       pack<kind>(rms_value(a.z, scale, wa.z), rms_value(a.w, scale, wa.w)),
                       pack<kind>(rms_value(b.x, scale, wb.x), rms_value(b.y, scale, wb.y)),
                       pack<kind>(rms_value(b.z, scale, wb.z), rms_value(b.w, scale, wb.w))};
      if (row < 0 || i >= n) v[0] = v[1] = v[2] = v[3] = 0;
      const uint32_t chunk = static_cast<uint32_t>(i % 64 / 8 ^ r % 8);
      hopper::store_shared_16(x_base + static_cast<uint32_t>(i / 64 * 1024 + r * 128) + chunk * 16, v);
    };
#pragma unroll
    for (int v = 0; v < kKept; v++) store(first + v * numerics::kSumLanes, x[v][0], x[v][1], w[v][0], w[v][1]);
    for (int i = first + kRest; i < padded; i += numerics::kSumLanes) {
      float4 a, b, wa, wb;
      load(in, i, a, b);
      load(p.norm_weight, i, wa, wb);
      store(i, a, b, wa, wb);
    }
  }
  hopper::fence_async_proxy();
  hopper::named_barrier_sync(1, 128);
}

// One operand's way into the ring, by a whole warp of which one lane issues: so the compiler sees that the copy
// engine's operands are the same for all lanes. (With a lane of its own a copy took 300 cycles to issue, as long as 14
// steps of a chain.)
template <int kSlices>
struct Feed {
  const TileWalk& walk;
  uint32_t full, empty, ring;
  uint32_t slice_bytes;
  int rows, sharing, part;  // rows to load of the tile; CTAs that each load a part for all, and this one's part
  int window;               // stages in flight at most: more only wait in the memory's queues, before others' reads
  uint16_t mask = 0;        // those CTAs

  // row_of: the first row of a tile's operand. near_end: called some stages before the end of each tile.
  template <typename F, typename G>
  __device__ void run(const CUtensorMap& map, int first_tile, int step, uint64_t policy, const F& row_of,
                      const G& near_end) const {
    using namespace hopper;
    const GemmParams& p = walk.p;
    const int part_rows = rows / sharing;
    const bool whole = sharing == 1 && static_cast<uint32_t>(rows) * 128 == slice_bytes;  // slices lie end to end
    const uint32_t stage_bytes = kSlices * slice_bytes, filled = kSlices * static_cast<uint32_t>(rows) * 128;
    const uint32_t to_part = ring + static_cast<uint32_t>(part * part_rows) * 128;
    int slot = 0;
    uint32_t phase = 1;
    for (int tile = first_tile; tile < walk.count(); tile += step) {
      int mc, nc;
      walk.at(tile, mc, nc);
      const int row = row_of(mc, nc) + part * part_rows;
      constexpr int kNearEnd = 8;
      for (int stage = 0; stage < p.k_stages; stage++) {
        if (stage == max(0, p.k_stages - kNearEnd)) near_end(mc, nc);
        const uint32_t bar = full + 8 * slot, to = to_part + static_cast<uint32_t>(slot) * stage_bytes;
        mbarrier_wait(empty + 8 * slot, phase);
        if (window < p.stages && (tile != first_tile || stage >= window)) {
          const bool wrapped = slot < window;  // the slot `window` back; phase ^ 1 is the parity of this round's fills
          mbarrier_wait(full + 8 * (slot - window + (wrapped ? p.stages : 0)), wrapped ? phase : phase ^ 1);
        }
        if (elect_one()) {
          mbarrier_arrive_expect(bar, filled);
          if (whole) {
            tma_load_3d(to, &map, bar, 0, row, stage * kSlices, policy);
          } else {
#pragma unroll
            for (int j = 0; j < kSlices; j++) {
              if (sharing == 1) {
                tma_load_3d(to + j * slice_bytes, &map, bar, 0, row, stage * kSlices + j, policy);
              } else {
                tma_load_3d_multicast(to + j * slice_bytes, &map, bar, 0, row, stage * kSlices + j, mask, policy);
              }
            }
          }
        }
        __syncwarp();
        if (++slot == p.stages) slot = 0, phase ^= 1;
      }
    }
  }
};

}  // namespace gemm_detail

// Two warpgroups need more registers than an even share; the third, which only feeds them, gives its own away.
constexpr int gemm_threads(int warpgroups) { return warpgroups == 1 ? 192 : 128 * warpgroups + 128; }
// Of a decode step's tiles two fit into an SM's registers, so that the next kernel's CTA may stand beside this one's.
constexpr int gemm_ctas_a_sm(int warpgroups, int tile_n) {
  return warpgroups == 1 && (tile_n <= 32 || tile_n == 128) ? 2 : 1;
}

// Grid: clusters of cluster_m · cluster_n CTAs, rank = m index + cluster_m · n index.
template <int kWarpgroups, int kN, int kSlices, numerics::Operand kKind>
__global__ void __launch_bounds__(gemm_threads(kWarpgroups), gemm_ctas_a_sm(kWarpgroups, kN))
    gemm_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                const __grid_constant__ CUtensorMap out_map, const __grid_constant__ GemmParams p) {
  using namespace hopper;
  using namespace gemm_detail;
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t barriers[3 * kGemmMaxStages];  // the weights are in, the slot is free, the activations are in
  constexpr uint32_t kSliceRow = 128;                // bytes of 64 elements
  constexpr uint32_t kWSlice = kN * kSliceRow;
  constexpr bool kChunks = gemm_tile_takes_chunks(kWarpgroups, kN), kStaged = gemm_tile_stages(kWarpgroups, kN);
  const uint32_t full = uniform(kept_shared_address(barriers)), empty = full + 8 * kGemmMaxStages;
  const uint32_t full_x = empty + 8 * kGemmMaxStages;
  const uint32_t x_ring = (uniform(kept_shared_address(shared_raw)) + 1023) & ~1023u;
  const uint32_t x_slice = static_cast<uint32_t>(p.x_rows) * kSliceRow;
  // x that was normalised here stays: a slot for each of K's stages.
  const bool resident = kWarpgroups == 1 && p.norm_x != nullptr;
  const uint32_t w_ring = x_ring + static_cast<uint32_t>(resident ? p.k_stages : p.stages) * kSlices * x_slice;
  [[maybe_unused]] const uint32_t staging = w_ring + static_cast<uint32_t>(p.stages) * kSlices * kWSlice;

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = uniform(thread / 32);
  const int cluster_ctas = p.cluster_m * p.cluster_n;
  const int rank = cluster_ctas > 1 ? uniform(static_cast<int>(cluster_rank())) : 0;
  const int rank_m = rank % p.cluster_m, rank_n = rank / p.cluster_m;
  const int first_cluster = static_cast<int>(blockIdx.x) / cluster_ctas;
  const int clusters = static_cast<int>(gridDim.x) / cluster_ctas;
  const int sharers = p.cluster_m + p.cluster_n - 1;  // CTAs that write into this one's stages
  const TileWalk walk{p};

  if (thread == 0) {
    for (int s = 0; s < p.stages; s++) {
      mbarrier_init(&barriers[s], 1);
      mbarrier_init(&barriers[2 * kGemmMaxStages + s], 1);
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
    if (role == 0) {
      Feed<kSlices> feed{walk, full, empty, w_ring, kN * kSliceRow, kN, p.cluster_m, rank_m, p.window};
      for (int i = 0; i < p.cluster_m; i++)
        feed.mask = static_cast<uint16_t>(feed.mask | 1 << (i + rank_n * p.cluster_m));
      // Weights that one row of clusters streams pass through the L2 once. They do not wait for the kernel before this
      // one.
      feed.run(
          w_map, first_cluster, clusters, p.m_clusters == 1 ? evict_first_policy() : evict_normal_policy(),
          [&](int, int nc) { return (nc * p.cluster_n + rank_n) * kN; }, [](int, int) {});
    } else if (role == 1 && !resident) {
      Feed<kSlices> feed{walk, full_x, empty, x_ring, x_slice, p.x_load, p.cluster_n, rank_n, p.stages};
      for (int i = 0; i < p.cluster_n; i++)
        feed.mask = static_cast<uint16_t>(feed.mask | 1 << (rank_m + i * p.cluster_m));
      wait_for_predecessors();
      // Few activations are to stay in the L2.
      const auto row_of = [&](int mc, int) { return (mc * p.cluster_m + rank_m) * p.x_rows; };
      feed.run(x_map, first_cluster, clusters, p.m <= 512 ? evict_last_policy() : evict_normal_policy(), row_of,
               [&](int mc, int nc) {
                 if (!kStaged || !p.staged || p.epilogue != Epilogue::kAddResidual) return;
                 fetch_residual<64 * kWarpgroups, kN>(p, row_of(mc, nc), (nc * p.cluster_n + rank_n) * kN);
               });
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
    [[maybe_unused]] FewPair pair;
    int slot = 0;
    uint32_t phase = 0;
    // The instructions were last used a layer ago and come from memory, a microsecond a piece. With few rows the time
    // before the predecessor's end is used to fetch them: one round of the loop on whatever the slots hold, not stored.
    const int rounds_before = kWarpgroups == 1 && p.few_rows ? 1 : 0;
    for (int tile = first_cluster - rounds_before * clusters; tile < walk.count(); tile += clusters) {
      const bool real = tile >= first_cluster;
      int mc, nc;
      walk.at(real ? tile : first_cluster, mc, nc);
      const int first_column = (nc * p.cluster_n + rank_n) * kN;
      if constexpr (kWarpgroups == 1) {
        // Slots, positions and tables are the step's inputs: no kernel writes them.
        if (p.few_rows && p.rotate && real) pair = few_pair<kN>(p, thread, first_column);
        if (resident && tile == first_cluster) normalise_rows<kKind>(p, x_ring, 64 * kSlices * p.k_stages);
      }
      if (tile == first_cluster) wait_for_predecessors();  // before the first write or residual read
      if constexpr (kWarpgroups == 1) {
        if (p.few_rows && !p.rotate && real) pair = few_pair<kN>(p, thread, first_column);
      }
      const int stages = real ? p.k_stages : 1;
      float d[kN / 2] = {};
      [[maybe_unused]] float sum[kChunks ? kN / 2 : 1];
      [[maybe_unused]] int chunk_end = p.chunk_stages;
      int previous = -1;
      bool ready = false;
      for (int stage = 0; stage < stages; stage++) {
        if constexpr (kChunks) {
          if (stage == chunk_end) {
            wgmma_wait<0>();
            pin_registers(d);
#pragma unroll
            for (int i = 0; i < kN / 2; i++) {
              sum[i] = stage == p.chunk_stages ? d[i] : numerics::fadd(sum[i], d[i]);
              d[i] = 0.0f;
            }
            chunk_end += p.chunk_stages;
          }
        }
        if (real && !ready) {
          mbarrier_wait(full + 8 * slot, phase);
          if (!resident) mbarrier_wait(full_x + 8 * slot, phase);
        }
        const uint64_t a = a0 + static_cast<uint32_t>(resident ? stage : slot) * (kSlices * x_slice >> 4);
        const uint64_t b = b0 + static_cast<uint32_t>(slot) * (kSlices * kWSlice >> 4);
        const auto steps = [&](auto first) {  // half a stage's
          wgmma_fence();
#pragma unroll
          for (int i = first.value; i < first.value + 2 * kSlices; i++) {
            const int j = i / 4, k = i % 4;
            wgmma<kN, kKind>(d, a + j * (x_slice >> 4) + 2 * k, b + j * (kWSlice >> 4) + 2 * k, true);
          }
          wgmma_commit();
        };
        pin_registers(d);
        steps(std::integral_constant<int, 0>{});
        // What else a stage needs is done between its halves: after its last step nothing is left for the tensor cores
        // to go on with.
        const int filled = slot;
        if (real && ++slot == p.stages) slot = 0, phase ^= 1;
        const bool x_ready = resident || mbarrier_test(full_x + 8 * slot, phase);
        ready = mbarrier_test(full + 8 * slot, phase) && x_ready;
        wgmma_wait<1>();  // the stage before is done
        if (previous >= 0) release(previous);
        if (real) previous = filled;
        steps(std::integral_constant<int, 2 * kSlices>{});
      }
      wgmma_wait<0>();
      pin_registers(d);
      if (real) release(previous);
      if constexpr (kChunks) {
        if (chunk_end > p.chunk_stages) {
#pragma unroll
          for (int i = 0; i < kN / 2; i++) d[i] = numerics::fadd(sum[i], d[i]);
        }
      }
      const int first_row = (mc * p.cluster_m + rank_m) * p.x_rows, row = first_row + warp * 16 + lane / 4;
      const int row_end = min(p.m, first_row + p.x_rows);
      const int column0 = first_column + 2 * (lane % 4);
      if constexpr (kWarpgroups == 1) {
        if (p.few_rows) {
          few_rows_epilogue<kN, kKind>(d, p, staging, first_column, pair, real ? p.m : 1);
        } else {
          epilogue<kN, kKind>(d, p, row, row_end, column0);
        }
      } else if (kStaged && p.staged) {
        if constexpr (kStaged) {
          const StagedRows to{&out_map, staging + static_cast<uint32_t>(warp) * 2 * StagedRows::kPiece, row - lane / 4,
                              lane};
          staged_epilogue<kN, kKind>(d, p, to, first_column);
        }
      } else {
        epilogue<kN, kKind>(d, p, row, row_end, column0);
      }
    }
    if constexpr (kStaged) {
      if (elect_one()) tma_store_wait<0>();
    }
  }
  // No CTA leaves while another may still write into its shared memory or signal its barriers.
  if (cluster_ctas > 1) cluster_sync();
}

}  // namespace isobit::cuda
