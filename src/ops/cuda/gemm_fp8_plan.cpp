#include "ops/cuda/gemm_fp8_plan.h"

#include <algorithm>

namespace isobit::cuda {
namespace {

constexpr int kBlockBytes = 128;          // a row of one block of K
constexpr int kSharedWhole = 225 * 1024;  // of 227 KB; the rest holds barriers
constexpr int kSharedHalf = 110 * 1024;
// Measured on an H200, or read from its data sheet where marked.
constexpr double kClockGhz = 1.6;
constexpr double kDramBytesPerUs = 4.2e6;
constexpr double kL2BytesPerUs = 7.5e6;
constexpr double kSmBytesPerUs = 0.1e6;        // into one SM's shared memory: 64 B a cycle (data sheet)
constexpr double kSmDramBytesPerUs = 0.045e6;  // what one SM alone can draw from DRAM

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Cycles of a block of 128 of K: four steps of each warpgroup's chain, and what of the folding is not hidden.
double block_cycles(const GemmFp8Tile& t) {
  const double tensor = 2.0 * t.tile_n * t.warpgroups * (t.part_n() >= 128 ? 1.0 : 1.1);
  const double latency = t.parts * (4.0 * (17 + 0.24 * t.part_n()) / t.group + (t.temps > 1 ? 20 : 60 + t.part_n()));
  return std::max(tensor, latency);
}

double estimate_us(const GemmFp8Shape& s, const GemmFp8Plan& p) {
  const GemmFp8Tile& t = p.tile();
  const double blocks = static_cast<double>(ceil_div(s.k, 128));
  const int64_t clusters = p.ctas / p.cluster_m;
  const double waves = static_cast<double>(ceil_div(p.cluster_tiles(), clusters));
  const double cycles = block_cycles(t) / (kClockGhz * 1e3);
  const double in_bytes = (p.tile_m + t.tile_n) * kBlockBytes;
  const double l2_bytes = (p.tile_m + static_cast<double>(t.tile_n) / p.cluster_m) * kBlockBytes;
  const double block = std::max({cycles, in_bytes / kSmBytesPerUs, l2_bytes * p.ctas / kL2BytesPerUs});
  const double dram = static_cast<double>((s.n + s.m) * s.k + 2 * s.m * s.n) / kDramBytesPerUs;
  const double sm_dram = waves * t.tile_n / p.cluster_m * static_cast<double>(s.k) / kSmDramBytesPerUs;
  const double epilogue = (0.15 + 0.001 * t.tile_n) * waves;
  return std::max({waves * blocks * block + epilogue, dram, sm_dram}) + 0.2 * (p.cluster_m - 1);
}

}  // namespace

int gemm_fp8_stage_bytes(const GemmFp8Tile& t, int tile_m, int scale_rows) {
  return t.slices * (tile_m + t.tile_n) * kBlockBytes + static_cast<int>(round_up(t.slices * scale_rows * 4, 128));
}

int gemm_fp8_tile_m(const GemmFp8Shape& s, int tile_index, int cluster_m) {
  const int most = 64 * kGemmFp8Tiles[tile_index].warpgroups;
  return static_cast<int>(std::min<int64_t>(most, round_up(ceil_div(s.m, cluster_m), 8)));
}

bool gemm_fp8_fits(const GemmFp8Shape& s, int tile_index, int cluster_m, int tile_m) {
  const GemmFp8Tile& t = kGemmFp8Tiles[tile_index];
  if (tile_m <= 0 || tile_m % 8 != 0 || tile_m > 64 * t.warpgroups) return false;
  if (t.tile_n % (cluster_m * (t.permuted ? 32 : 8)) != 0) return false;  // shares are whole groups of rows
  return cluster_m <= ceil_div(s.m, tile_m);
}

bool gemm_fp8_can_stage(int tile_index, int tile_m) {
  const GemmFp8Tile& t = kGemmFp8Tiles[tile_index];
  return t.warpgroups == 2 && t.permuted && tile_m == 128;
}

GemmFp8Plan gemm_fp8_plan_for(const GemmFp8Shape& s, int tile_index, int cluster_m, int tile_m, int sm_count,
                              int shared_limit, bool staged) {
  GemmFp8Plan p;
  p.tile_index = tile_index;
  p.cluster_m = cluster_m;
  p.tile_m = p.scale_rows = tile_m;
  p.staged = staged;
  const GemmFp8Tile& t = p.tile();
  p.m_tiles = static_cast<int>(ceil_div(s.m, tile_m));
  p.n_tiles = static_cast<int>(ceil_div(s.n, t.tile_n));
  const int stage_bytes = gemm_fp8_stage_bytes(t, tile_m, p.scale_rows);
  // To align the ring, and for what is read behind it: the tensor cores take 64 rows a warpgroup, whatever the tile has
  // (behind x's slots stand w's, behind the scales this).
  const int spare = 1024 + 512 + (staged ? tile_m * t.tile_n * 2 : 0);
  p.stages = std::clamp((shared_limit - spare) / stage_bytes, 2, kGemmFp8MaxStages);
  const int64_t clusters = std::max(1, sm_count / cluster_m);
  if (p.cluster_tiles() <= clusters) {  // nothing to run ahead to
    p.stages =
        static_cast<int>(std::min<int64_t>(p.stages, std::max<int64_t>(2, ceil_div(ceil_div(s.k, 128), t.slices))));
  }
  p.shared_bytes = p.stages * stage_bytes + spare;
  const int64_t waves = ceil_div(p.cluster_tiles(), clusters);
  p.ctas = static_cast<int>(ceil_div(p.cluster_tiles(), waves)) * cluster_m;
  p.group_m = std::max(1, 2048 / (tile_m * cluster_m));
  p.estimated_us = estimate_us(s, p);
  return p;
}

namespace {

// One row of tiles: w's bytes bound the time, so the CTA with the most rows of w should have few. A wider tile has
// fewer ends and chains, and is worth some more rows where K is short (measured).
GemmFp8Plan plan_for_few_rows(const GemmFp8Shape& s, int sm_count) {
  const auto busiest = [&](int i) {
    const int64_t tile_n = kGemmFp8Tiles[i].tile_n;
    return ceil_div(ceil_div(s.n, tile_n), sm_count) * tile_n;
  };
  const auto usable = [](int i) { return kGemmFp8Tiles[i].warpgroups == 1; };
  int64_t fewest = INT64_MAX;
  for (int i = 0; i < kGemmFp8TileCount; i++) {
    if (usable(i)) fewest = std::min(fewest, busiest(i));
  }
  const int64_t allowance = s.k <= 4096 ? 15 : 5;  // per cent
  int best = -1;
  for (int i = 0; i < kGemmFp8TileCount; i++) {
    if (!usable(i) || busiest(i) * 100 > fewest * (100 + allowance)) continue;
    if (best < 0 || kGemmFp8Tiles[i].tile_n > kGemmFp8Tiles[best].tile_n) best = i;
  }
  // Where half the shared memory holds most of what a CTA reads, the next kernel's CTAs begin to fetch in the rest.
  const int tile_m = gemm_fp8_tile_m(s, best, 1);
  const bool half = busiest(best) * s.k <= 140 * 1024 &&
                    (kSharedHalf - 1536) / gemm_fp8_stage_bytes(kGemmFp8Tiles[best], tile_m, tile_m) >= 4;
  return gemm_fp8_plan_for(s, best, 1, tile_m, sm_count, half ? kSharedHalf : kSharedWhole);
}

}  // namespace

GemmFp8Plan gemm_fp8_plan(const GemmFp8Shape& s, int sm_count) {
  if (s.m <= 64) return plan_for_few_rows(s, sm_count);
  GemmFp8Plan best;
  for (int i = 0; i < kGemmFp8TileCount; i++) {
    for (const int cluster_m : {1, 2}) {
      const int tile_m = gemm_fp8_tile_m(s, i, cluster_m);
      if (!gemm_fp8_fits(s, i, cluster_m, tile_m)) continue;
      // Staging takes the place of a stage of the ring, which is worth more where K is long (measured: 4096×7168 at M
      // 4096 187 µs without, 200 with; 32768×512 175 and 157).
      const bool staged = s.k <= 1024 && gemm_fp8_can_stage(i, tile_m);
      const GemmFp8Plan p = gemm_fp8_plan_for(s, i, cluster_m, tile_m, sm_count, kSharedWhole, staged);
      if (best.stages == 0 || p.estimated_us < best.estimated_us) best = p;
    }
  }
  return best;
}

GemmFp8ThinPlan gemm_fp8_thin_plan_for(const GemmFp8Shape& s, int cluster, int resident, int sm_count, int most_ctas) {
  GemmFp8ThinPlan p;
  const int64_t blocks = ceil_div(s.k, kBlockBytes);
  const int64_t rank_blocks = round_up(ceil_div(blocks, cluster), kGemmFp8ThinSlices);
  if (s.m > kGemmFp8ThinRows || rank_blocks > 128 || (cluster - 1) * rank_blocks >= blocks) return p;
  const int64_t rows = 64 / cluster;
  // x's share and its scales, two sets of w's (of gate and up), in a cluster every p of this CTA's rows and all scales.
  const int64_t fixed = rank_blocks * (s.m * kBlockBytes + kGemmFp8ThinRows * 4 + 16) +
                        (cluster > 1 ? blocks * s.m * (rows + 1) * 4 : 0) + 1024;
  const int64_t stage_bytes = kGemmFp8ThinSlices * 64 * kBlockBytes;
  const int64_t limit = resident == 1 ? kSharedWhole : (228 * 1024 / resident) - 1536;  // 1 KB of each is the system's
  const int64_t stages = std::min<int64_t>((limit - fixed) / stage_bytes, kGemmFp8MaxStages);
  if (stages < 2) return p;
  p.cluster = cluster;
  p.rank_blocks = static_cast<int>(rank_blocks);
  p.tiles = static_cast<int>(ceil_div(s.n, 64));
  // Alone, a CTA walks several tiles; a cluster has one.
  p.ctas = cluster > 1 ? p.tiles * cluster : std::min({p.tiles, sm_count * resident, most_ctas});
  p.stages = static_cast<int>(cluster > 1 || p.tiles <= p.ctas
                                  ? std::min(stages, std::max<int64_t>(2, rank_blocks / kGemmFp8ThinSlices))
                                  : stages);
  p.shared_bytes = static_cast<int>(fixed + p.stages * stage_bytes);
  return p;
}

GemmFp8ThinPlan gemm_fp8_thin_plan(const GemmFp8Shape& s, int sm_count, int most_resident) {
  if (s.m > 1) return {};  // measured at M 4 and 8: as fast as the tiles at best
  const int64_t tiles = ceil_div(s.n, 64);
  // Measured: two thirds of the SMs draw w as fast as all do, so a cluster pays only where fewer would be busy.
  int least = 1;
  while (least < 4 && tiles * least < sm_count * 2 / 3) least *= 2;
  // Three CTAs an SM where only so all tiles run at once.
  if (most_resident >= 3 && tiles * least > 2 * sm_count && tiles * least <= 3 * sm_count) {
    const GemmFp8ThinPlan third = gemm_fp8_thin_plan_for(s, least, 3, sm_count);
    if (third.stages >= 3) return third;
  }
  // Two of such a size where there are more tiles, all of K's stages in the ring: the next kernel's third fetches.
  if (most_resident >= 3 && tiles > 3 * sm_count) {
    const GemmFp8ThinPlan p = gemm_fp8_thin_plan_for(s, 1, 3, sm_count, 2 * sm_count);
    if (p.stages * kGemmFp8ThinSlices >= p.rank_blocks) return p;
  }
  // Two, so that the next kernel's can fetch beside this one's (in an 8B decoder's step worth more than half a
  // microsecond of the kernel alone); else one. Clusters come in one wave, with room for the next kernel.
  for (const int resident : {2, 1}) {
    for (const int cluster : {least, 2 * least}) {
      const GemmFp8ThinPlan p = gemm_fp8_thin_plan_for(s, cluster, resident, sm_count);
      const int stages = std::min(cluster > 1 ? 6 : 7, std::max(2, p.rank_blocks / kGemmFp8ThinSlices * 3 / 4));
      if (p.stages >= stages && (cluster == 1 || p.ctas * 2 <= (resident + 1) * sm_count)) return p;
    }
  }
  return {};
}

GemmFp8Plan grouped_gemm_fp8_plan_for(const GemmFp8Shape& s, int64_t experts, int tile_index, int tile_m, int cluster_n,
                                      int sm_count) {
  GemmFp8Plan p;
  p.tile_index = tile_index;
  p.tile_m = tile_m;
  p.scale_rows = tile_m + 4;
  p.cluster_n = cluster_n;
  p.n_tiles = static_cast<int>(ceil_div(s.n, p.tile().tile_n * cluster_n));
  const int table = static_cast<int>(round_up(128 + (experts + 1) * 4, 1024));  // queue, tiles before each expert
  const int stage_bytes = gemm_fp8_stage_bytes(p.tile(), tile_m, p.scale_rows), spare = 1024 + 512 + table;
  p.stages = std::clamp((kSharedWhole - spare) / stage_bytes, 2, kGemmFp8MaxStages);
  p.shared_bytes = p.stages * stage_bytes + spare;
  p.ctas = sm_count / cluster_n * cluster_n;
  return p;
}

GemmFp8Plan grouped_gemm_fp8_plan(const GemmFp8Shape& s, int64_t experts, int64_t expected_m, int sm_count) {
  // Few rows: w's bytes bound the time; the wide tile of one warpgroup, with room for half as many rows again as are
  // expected, since those that an expert has more cost a second tile. Many: the tile of the dense case.
  static_assert(kGemmFp8Tiles[kGroupedFewTile].warpgroups == 1 && kGemmFp8Tiles[kGroupedManyTile].warpgroups == 2);
  const bool few = expected_m <= 48;
  const int64_t rows = few ? std::clamp<int64_t>(round_up(expected_m + expected_m / 2 + 4, 8), 8, 64) : 128;
  return grouped_gemm_fp8_plan_for(s, experts, few ? kGroupedFewTile : kGroupedManyTile, static_cast<int>(rows),
                                   few ? 1 : 2, sm_count);
}

}  // namespace isobit::cuda
