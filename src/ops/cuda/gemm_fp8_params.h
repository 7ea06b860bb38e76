#pragma once
// What the FP8 GEMM's kernel is told, beside its tensor maps.
#include <cstdint>

#include "ops/cuda/expert_table.h"

namespace isobit::cuda {

enum class GemmFp8Out : int { kBF16, kF16, kF32 };

struct GemmFp8Params {
  int m = 0, columns = 0;  // of the output
  int k_blocks = 0, n_blocks = 0, k_stages = 0;
  int m_clusters = 0, n_tiles = 0;
  int group_m = 1;
  int cluster_m = 1;
  int stages = 0, tile_m = 0;
  int scale_rows = 0;  // of x's scales in a stage
  int x_load = 0;      // rows of x that are asked for: of a single tile those that exist
  bool staged = false;
  GemmFp8Out out_type = GemmFp8Out::kBF16;
  bool even = false, wide = false;  // rows of out stand at whole pairs, and at whole 16 bytes
  bool add = false;                 // to what out holds (kF32)
  int64_t out_stride = 0;           // elements
  const float* bias = nullptr;      // [columns] or null
  const float* w_scale = nullptr;   // [n_blocks, k_blocks], of each expert
  // Grouped: matrices of expert_rows stored rows each.
  ExpertTable table;
  int expert_rows = 0;
  void* out = nullptr;
  int cluster_n = 1;            // grouped: CTAs along N that share x's tile; n_tiles is then of clusters
  bool w_once = false;          // each row of w is asked for by one tile
  uint32_t* tickets = nullptr;  // KernelContext::counters
};

}  // namespace isobit::cuda
