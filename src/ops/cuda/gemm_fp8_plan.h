#pragma once
// How the FP8 GEMM is cut into tiles: a pure function of its sizes and the GPU, never of data. It decides speed alone;
// every plan gives the same bits (docs/numerics.md, N16).
#include <cstdint>
#include <vector>

namespace isobit::cuda {

// A compiled kernel. A CTA's tile has `warpgroups` · 64 rows of x at most and `tile_n` rows of w, computed in `parts`
// of equal width; its stages hold `slices` × 128 of K, of which `group` are multiplied side by side.
struct GemmFp8Tile {
  int warpgroups = 1;
  int tile_n = 0;
  int parts = 1;
  int slices = 1;
  int group = 1;
  int temps = 1;          // sets of accumulators of single blocks
  int unroll = 1;         // stages whose multiplications and folds overlap
  bool permuted = false;  // w's rows stand in shared memory so that a thread's outputs are eight neighbours

  auto operator<=>(const GemmFp8Tile&) const = default;
  constexpr int part_n() const { return tile_n / parts; }
  constexpr int steps() const { return slices / group * parts; }
  constexpr int threads() const { return warpgroups == 1 ? 192 : 128 * warpgroups + 128; }
};

constexpr GemmFp8Tile kGemmFp8Tiles[] = {
    {1, 16, 1, 4, 2, 2, 2, false}, {1, 32, 1, 2, 2, 2, 4, false}, {1, 48, 1, 2, 2, 2, 2, false},
    {1, 56, 1, 2, 1, 2, 2, false}, {1, 64, 1, 2, 1, 2, 2, false}, {1, 128, 2, 1, 1, 2, 4, true},
    {1, 192, 3, 1, 1, 2, 2, true}, {2, 192, 1, 1, 1, 1, 1, true}, {2, 256, 2, 1, 1, 1, 1, true}};
constexpr int kGemmFp8TileCount = static_cast<int>(sizeof(kGemmFp8Tiles) / sizeof(kGemmFp8Tiles[0]));
constexpr int kGemmFp8MaxStages = 16;

struct GemmFp8Plan {
  int tile_index = 0;   // in kGemmFp8Tiles
  int tile_m = 0;       // rows of x a CTA loads and stores: a multiple of 8, at most 64 · warpgroups
  int scale_rows = 0;   // of x's scales in a stage: tile_m; grouped, where tiles begin at any row, four more
  int cluster_m = 1;    // CTAs along M that share w's tile
  bool staged = false;  // outputs leave through shared memory, while the next tile is computed
  int stages = 0;
  int m_tiles = 0, n_tiles = 0;  // in CTAs, not rounded to clusters (grouped: n_tiles in clusters)
  int group_m = 1;               // clusters along M that walk w together, so that the L2 holds what they share
  int ctas = 0;
  int shared_bytes = 0;
  double estimated_us = 0;
  int cluster_n = 1;  // grouped: CTAs along N that share x's tile

  const GemmFp8Tile& tile() const { return kGemmFp8Tiles[tile_index]; }
  int64_t cluster_tiles() const {
    return static_cast<int64_t>((m_tiles + cluster_m - 1) / cluster_m) * static_cast<int64_t>(n_tiles);
  }
};

struct GemmFp8Shape {
  int64_t m = 0, n = 0, k = 0;
};

// Bytes of one stage of the ring.
int gemm_fp8_stage_bytes(const GemmFp8Tile& tile, int tile_m, int scale_rows);
// True where this tile, cluster and number of rows can serve the shape.
bool gemm_fp8_fits(const GemmFp8Shape& shape, int tile_index, int cluster_m, int tile_m);
// True where the outputs of such a tile can leave through shared memory (if they are of 16 bits and stand at 16 bytes).
bool gemm_fp8_can_stage(int tile_index, int tile_m);
// The plan for a given tile; gemm_fp8_fits must hold, for `staged` gemm_fp8_can_stage too. shared_limit: bytes of
// shared memory it may take.
GemmFp8Plan gemm_fp8_plan_for(const GemmFp8Shape& shape, int tile_index, int cluster_m, int tile_m, int sm_count,
                              int shared_limit, bool staged = false);
// The most rows that tile and cluster can take of this shape's.
int gemm_fp8_tile_m(const GemmFp8Shape& shape, int tile_index, int cluster_m);
// The fastest by estimate.
GemmFp8Plan gemm_fp8_plan(const GemmFp8Shape& shape, int sm_count);

// Of at most kGemmFp8ThinRows rows (gemm_fp8_thin.cu): CTAs of 64 rows of w, whose K the CTAs of a cluster share.
constexpr int kGemmFp8ThinRows = 8, kGemmFp8ThinSlices = 2;
constexpr int kFp8NormedRow = 8192;  // the longest row that a GEMM takes from before its norm
struct GemmFp8ThinPlan {
  int cluster = 1;
  int stages = 0;       // 0: the kernel does not take these sizes
  int rank_blocks = 0;  // of K, a CTA of the cluster: whole stages
  int tiles = 0, ctas = 0;
  int shared_bytes = 0;
};
// `resident`: CTAs that an SM is to hold at once, the next kernel's among them. most_ctas: of those that walk tiles.
GemmFp8ThinPlan gemm_fp8_thin_plan_for(const GemmFp8Shape& shape, int cluster, int resident, int sm_count,
                                       int most_ctas = INT32_MAX);
// stages 0 where gemm_fp8_plan serves better. most_resident: CTAs that an SM's registers hold.
GemmFp8ThinPlan gemm_fp8_thin_plan(const GemmFp8Shape& shape, int sm_count, int most_resident = 3);

// Grouped: `shape` is of all experts' rows together and of one expert's matrix; expected_m: rows that an expert is
// likely to have. How many tiles there are is known on the device alone, so there is a CTA for each SM.
constexpr int kGroupedFewTile = 5, kGroupedManyTile = 8;  // the tiles that have a grouped kernel
// cluster_n: 1, or 2 where tile_m is a multiple of 16 and the tile takes one slice of K a stage.
GemmFp8Plan grouped_gemm_fp8_plan_for(const GemmFp8Shape& shape, int64_t experts, int tile_index, int tile_m,
                                      int cluster_n, int sm_count);
GemmFp8Plan grouped_gemm_fp8_plan(const GemmFp8Shape& shape, int64_t experts, int64_t expected_m, int sm_count);

}  // namespace isobit::cuda
