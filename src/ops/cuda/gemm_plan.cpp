#include "ops/cuda/gemm_plan.h"

#include <algorithm>

namespace isobit::cuda {
namespace {

constexpr int kSliceBytes = 128;          // a row of a slice: 64 elements
constexpr int kMaxStages = 16;            // barriers in gemm_kernel.h
constexpr int kSharedBytes = 224 * 1024;  // of 227 KB; the rest holds barriers and alignment
// As much, where a CTA of the attention kernel is to stand on the same SM (113 KB; each CTA costs 1 KB more).
constexpr int kSharedBytesBesideAttention = 110 * 1024;
constexpr int kLeastRing = 64 * 1024;  // of weights, to have twice what is in flight
// Measured on an H200, or read from its data sheet where marked.
constexpr double kClockGhz = 1.7;
constexpr double kDramBytesPerUs = 4.3e6;
constexpr double kL2BytesPerUs = 7.5e6;
constexpr double kSmBytesPerUs = 0.1e6;        // into one SM's shared memory: 64 B a cycle (data sheet)
constexpr double kSmDramBytesPerUs = 0.045e6;  // what one SM alone can draw from DRAM

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Cycles of one k16 step of all the warpgroups' chains: the latency of a dependent step, or the tensor cores' rate.
double step_cycles(const GemmTile& t) {
  const double latency = 17.0 + 0.24 * t.tile_n;
  const double rate = 0.5 * t.tile_n * t.warpgroups;
  return std::max(latency, rate * 1.04);
}

double estimate_us(const GemmShape& s, const GemmPlan& p) {
  const double slices = static_cast<double>(ceil_div(s.k, 64));
  const int64_t clusters = p.ctas / (p.cluster_m * p.cluster_n);
  const double waves = static_cast<double>(ceil_div(p.cluster_tiles(), clusters));
  const double tensor = step_cycles(p.tile) * 4 / (kClockGhz * 1e3);
  const double in_bytes = (p.x_rows + p.tile.tile_n) * kSliceBytes;
  const double l2_bytes =
      (static_cast<double>(p.x_rows) / p.cluster_n + static_cast<double>(p.tile.tile_n) / p.cluster_m) * kSliceBytes;
  const double slice = std::max({tensor, in_bytes / kSmBytesPerUs, l2_bytes * p.ctas / kL2BytesPerUs});
  const double weights = static_cast<double>(s.n) * static_cast<double>(s.k) * 2;
  const double dram = (weights + static_cast<double>(s.m) * static_cast<double>(s.k) * 2) / kDramBytesPerUs;
  const double sm_dram = waves * p.tile.tile_n / p.cluster_m * static_cast<double>(s.k) * 2 / kSmDramBytesPerUs;
  const double epilogue = (0.25 + 0.004 * p.tile.tile_n) * waves;
  return std::max({waves * slices * slice + epilogue, dram, sm_dram}) + 0.05 * waves + 0.0005 * p.ctas;
}

// Rows of x a tile. Where M has fewer than the tile takes, or leaves the last tile fewer, only its share of M is
// loaded: the tensor cores read on into the next slot, and nobody looks at the result. Staged outputs leave in whole
// tiles.
int tile_rows(int64_t m, const GemmTile& t, int cluster_n) {
  const int most = 64 * t.warpgroups;
  const int64_t tiles = ceil_div(m, most);
  if (tiles > 1 && t.warpgroups > 1) return most;
  return static_cast<int>(ceil_div(ceil_div(m, tiles), 8 * cluster_n) * 8 * cluster_n);
}

}  // namespace

const std::vector<GemmTile>& gemm_tiles() {
  static const std::vector<GemmTile> tiles = {
      {1, 8, 2},  {1, 16, 2}, {1, 24, 2}, {1, 32, 2},  {1, 48, 2},  {1, 56, 2},  {1, 16, 8},  {1, 24, 4},
      {1, 32, 4}, {1, 48, 4}, {1, 64, 2}, {1, 112, 2}, {1, 128, 1}, {1, 128, 2}, {2, 128, 1}, {2, 256, 1}};
  return tiles;
}

bool gemm_tile_fits(const GemmShape& s, const GemmTile& t, int cluster_m, int cluster_n) {
  if (s.gated && t.tile_n % 16 != 0) return false;
  if (s.chunked && !gemm_tile_takes_chunks(t.warpgroups, t.tile_n)) return false;
  if (t.tile_n % (8 * cluster_m) != 0) return false;  // shares are whole 8-row groups
  if (cluster_n > 1 && (s.m <= 32 || t.tile_n < 32)) return false;
  const int64_t m_tiles = ceil_div(s.m, 64 * t.warpgroups);
  return cluster_m <= m_tiles && cluster_n <= ceil_div(s.n, t.tile_n);
}

GemmPlan gemm_plan_for(const GemmShape& s, const GemmTile& t, int cluster_m, int cluster_n, int sm_count) {
  GemmPlan p;
  p.tile = t;
  p.cluster_m = cluster_m;
  p.cluster_n = cluster_n;
  p.x_rows = tile_rows(s.m, t, cluster_n);
  p.m_tiles = static_cast<int>(ceil_div(s.m, p.x_rows));
  p.n_tiles = static_cast<int>(ceil_div(s.n, t.tile_n));

  const int k_stages = static_cast<int>(ceil_div(s.k, 64 * t.slices));
  const int x_stage = t.slices * p.x_rows * kSliceBytes;
  p.few_rows = t.warpgroups == 1 && s.m <= kGemmFewRows;
  const int resident_bytes =
      (gemm_tile_stages(t.warpgroups, t.tile_n) ? kGemmStagedBytes : 0) + (s.normed ? k_stages * x_stage : 0) +
      (p.few_rows ? static_cast<int>(s.m) * (t.tile_n + 4) * static_cast<int>(sizeof(float)) : 0);
  const int stage_bytes = t.slices * t.tile_n * kSliceBytes + (s.normed ? 0 : x_stage);
  // The deepest ring: 11.2 against 10.7 µs (M 1, 4096×4096) where half the shared memory is left for the next kernel.
  p.stages = std::min(kMaxStages, (kSharedBytes - resident_bytes) / stage_bytes);
  // But attention, which at one or two rows has little to do, then spends two of its 16 µs on starting: its CTAs are to
  // stand ready, with their code and keys, beside those that make q.
  const int beside_attention = (kSharedBytesBesideAttention - resident_bytes) / stage_bytes;
  if (s.normed && s.rotated && beside_attention * t.slices * t.tile_n * kSliceBytes >= kLeastRing) {
    p.stages = std::min(p.stages, beside_attention);
  }
  // A stage more than K has is of use only where a CTA walks on to another tile; at least 4, or 8 KB of weights, keep
  // the tensor cores' reads past few rows inside the shared memory.
  const int64_t clusters = sm_count / (cluster_m * cluster_n);
  if (p.cluster_tiles() <= clusters) p.stages = std::min(p.stages, std::max(k_stages, 4));
  // 48 KB of each SM in flight are all the memory takes (4.3 TB/s times a microsecond and a half); more would stand in
  // its queues before what other kernels wait for.
  constexpr int kWindowBytes = 48 * 1024;
  p.window = s.m <= 64 ? std::clamp(kWindowBytes / (t.slices * t.tile_n * kSliceBytes), 2, p.stages) : p.stages;
  p.shared_bytes = resident_bytes + p.stages * stage_bytes + 1024;

  const int64_t waves = ceil_div(p.cluster_tiles(), clusters);
  p.ctas = static_cast<int>(ceil_div(p.cluster_tiles(), waves)) * cluster_m * cluster_n;
  // 2048 rows of x walk together: with as many rows of w they are what a wave of tiles shares.
  p.group_m = std::max(1, 2048 / (64 * t.warpgroups * cluster_m));
  p.estimated_us = estimate_us(s, p);
  return p;
}

namespace {

// One row of tiles: the weights' bytes bound the time, so the CTA with the most weight rows should have few; within 5%
// of the fewest the widest tile, which has the fewest chains and ends. Clusters did not pay (M 64: 10.9 µs
// without, 12.1 with).
GemmPlan plan_for_few_rows(const GemmShape& s, int sm_count) {
  // A stage costs the warps that run it as much as eight steps of a chain, so few rows take longer ones; but short ones
  // where a stage is 32 KB, of which only one or two would be in flight.
  const auto slices_of = [&](int tile_n) {
    if (tile_n == 128 && s.normed && s.gated) return 1;
    if (s.m > kGemmFewRows || tile_n < 16 || tile_n > 48) return 2;
    return tile_n == 16 ? 8 : 4;
  };
  const auto usable = [&](const GemmTile& t) {
    return t.warpgroups == 1 && t.slices == slices_of(t.tile_n) && gemm_tile_fits(s, t, 1, 1);
  };
  const auto rows_of_busiest = [&](const GemmTile& t) {
    return ceil_div(ceil_div(s.n, t.tile_n), sm_count) * t.tile_n;
  };
  int64_t fewest = INT64_MAX;
  for (const GemmTile& t : gemm_tiles()) {
    if (usable(t)) fewest = std::min(fewest, rows_of_busiest(t));
  }
  GemmTile best;
  for (const GemmTile& t : gemm_tiles()) {
    if (usable(t) && rows_of_busiest(t) * 20 <= fewest * 21 && t.tile_n > best.tile_n) best = t;
  }
  return gemm_plan_for(s, best, 1, 1, sm_count);
}

}  // namespace

GemmPlan gemm_plan(const GemmShape& s, int sm_count) {
  if (s.m <= 64) return plan_for_few_rows(s, sm_count);
  static constexpr int kClusters[][2] = {{1, 1}, {2, 1}, {1, 2}};
  GemmPlan best;
  for (const GemmTile& t : gemm_tiles()) {
    for (const auto& [cluster_m, cluster_n] : kClusters) {
      if (!gemm_tile_fits(s, t, cluster_m, cluster_n)) continue;
      const GemmPlan p = gemm_plan_for(s, t, cluster_m, cluster_n, sm_count);
      if (best.stages == 0 || p.estimated_us < best.estimated_us) best = p;
    }
  }
  return best;
}

}  // namespace isobit::cuda
