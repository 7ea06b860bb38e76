#pragma once
// What the GEMM kernel is told, beside its two tensor maps.
#include "ops/gemm.h"

namespace isobit::cuda {

constexpr int kGemmMaxStages = 16;

struct GemmParams {
  int m = 0, columns = 0;  // of the output
  int k_stages = 0, chunk_stages = 0;
  int m_clusters = 0, n_clusters = 0;  // tiles in clusters
  int group_m = 1;
  int cluster_m = 1, cluster_n = 1;
  int stages = 0, x_rows = 0;
  Epilogue epilogue = Epilogue::kStoreF32;
  const float* bias = nullptr;
  void* out = nullptr;
  bool aligned = false;  // out stands at 16 bytes
};

}  // namespace isobit::cuda
