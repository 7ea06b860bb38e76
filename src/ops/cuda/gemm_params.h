#pragma once
// What the GEMM kernel is told, beside its two tensor maps.
#include "ops/gemm.h"
#include "ops/rope.h"

namespace isobit::cuda {

constexpr int kGemmMaxStages = 16;

struct GemmParams {
  int m = 0, columns = 0;  // of the output
  int k_stages = 0, chunk_stages = 0;
  int m_clusters = 0, n_clusters = 0;  // tiles in clusters
  int group_m = 1;
  int cluster_m = 1, cluster_n = 1;
  int stages = 0, x_rows = 0;
  int x_load = 0;  // of x_rows, those loaded
  int window = 0;  // stages of weights in flight
  Epilogue epilogue = Epilogue::kStoreF32;
  const float* bias = nullptr;
  void* out = nullptr;
  bool few_rows = false;  // the epilogue goes through shared memory
  bool aligned = false;   // out stands at 16 bytes
  bool staged = false;    // outputs leave by way of shared memory and the copy engine
  // Where norm_x is not null, x is its RMSNorm (rule N8), made by every CTA for itself: few rows, K a multiple of 64.
  const float* norm_x = nullptr;
  const int32_t* norm_rows = nullptr;
  const float* norm_weight = nullptr;
  int norm_n = 0;
  float norm_eps = 0;
  // Where rotate is set the outputs are q, k and v, and go where rope_cache would put them.
  bool rotate = false;
  RopeCacheArgs rope;
};

}  // namespace isobit::cuda
