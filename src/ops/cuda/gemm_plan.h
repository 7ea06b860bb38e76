#pragma once
// How a GEMM is cut into tiles: a pure function of its sizes and the GPU, never of data. It decides speed alone; every
// plan gives the same bits (docs/numerics.md, N7).
#include <cstdint>
#include <vector>

namespace isobit::cuda {

// A compiled kernel: `warpgroups` of 64 rows of x each, `tile_n` weight rows, stages of `slices` × 64 of K.
struct GemmTile {
  int warpgroups = 1;
  int tile_n = 0;
  int slices = 1;
  auto operator<=>(const GemmTile&) const = default;
};

// N7's narrow matrices need a second set of accumulators.
constexpr bool gemm_tile_takes_chunks(int warpgroups, int tile_n) { return tile_n <= (warpgroups == 1 ? 64 : 128); }

// Tiles whose end is worth shared memory: their outputs leave through the copy engine, 4 KB a warp.
constexpr bool gemm_tile_stages(int warpgroups, int tile_n) { return warpgroups == 2 && tile_n == 256; }
constexpr int kGemmStagedBytes = 32 * 1024;

// Every compiled tile.
const std::vector<GemmTile>& gemm_tiles();

struct GemmPlan {
  GemmTile tile;
  int cluster_m = 1, cluster_n = 1;  // CTAs of a cluster along M share the weights' tile, along N the activations'
  int x_rows = 0;                    // rows of x a tile: a multiple of 8, at most 64 · warpgroups
  bool few_rows = false;             // at most 16 rows of x: the epilogue's form for them, with memory of its own
  int stages = 0;
  int window = 0;                // of them in flight at most, as far as the weights go
  int m_tiles = 0, n_tiles = 0;  // in CTAs, not rounded to clusters
  int group_m = 1;  // clusters along M that walk the weights together, so that the L2 holds what they share
  int ctas = 0;     // grid, a multiple of the cluster; each walks tiles until none is left
  int shared_bytes = 0;
  double estimated_us = 0;

  int64_t cluster_tiles() const {
    return static_cast<int64_t>((m_tiles + cluster_m - 1) / cluster_m) * ((n_tiles + cluster_n - 1) / cluster_n);
  }
};

struct GemmShape {
  int64_t m = 0, n = 0, k = 0;  // n: rows as stored (linear_cuda.h)
  bool gated = false;           // gate and up must fall into one tile: tile_n a multiple of 16
  bool normed = false;          // the kernel takes x's RMSNorm itself and keeps all of x in shared memory
  bool rotated = false;         // the outputs are q, k and v: attention follows
  bool chunked = false;         // one of N7's narrow matrices
};

constexpr int64_t kGemmFewRows = 16;         // whose epilogue goes through shared memory, and can rotate
constexpr int kGemmMostShared = 226 * 1024;  // bytes that any plan may take
// Most rows, and most of K, for GemmShape::normed.
constexpr int64_t kGemmNormedRows = 2, kGemmNormedK = 8192;

// True where the tile can serve the shape at all.
bool gemm_tile_fits(const GemmShape& shape, const GemmTile& tile, int cluster_m, int cluster_n);
// The plan for a given tile and cluster; gemm_tile_fits must hold.
GemmPlan gemm_plan_for(const GemmShape& shape, const GemmTile& tile, int cluster_m, int cluster_n, int sm_count);
// The fastest by estimate.
GemmPlan gemm_plan(const GemmShape& shape, int sm_count);

}  // namespace isobit::cuda
