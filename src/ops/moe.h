#pragma once
// A mixture of experts around its GEMMs (rule N23): experts' matrices in bf16 or f16, and the weighted sum of what a
// token's experts gave. The block-scaled matrices are in gemm_fp8.h.
#include <cstdint>

#include "base/dtype.h"

namespace isobit {

// Experts' matrices, each for its own rows of x (rule N7 for every row, whatever rows stand beside it). `rows`,
// `capacity` and `expected_m` as for GroupedGemmFp8Args.
struct GroupedGemmArgs {
  const uint16_t* x = nullptr;  // [m, k]
  int64_t m = 0;
  const uint16_t* w = nullptr;           // [experts, n, k]
  int64_t experts = 0, n = 0, k = 0;     // k a multiple of 8
  const int32_t* rows = nullptr;         // contiguous: [experts + 1], masked: [experts]
  int64_t capacity = 0, expected_m = 0;  // masked: m = experts · capacity
  DType type = DType::kBF16;             // of x and w: kBF16 or kF16
  DType out_type = DType::kBF16;         // kF32, or `type`
  void* out = nullptr;                   // [m, n]

  void check() const;
};

// out[t, j] = Σ over slots s ascending of weight[t, s] · x[row[t, s], j], as N23 states it. A slot whose row is not in
// [0, rows) is left out.
struct CombineArgs {
  const void* x = nullptr;      // [rows, n]
  DType x_type = DType::kBF16;  // kBF16, kF16 or kF32
  int64_t rows = 0, n = 0;
  const int32_t* row = nullptr;   // [count, top]
  const float* weight = nullptr;  // [count, top]
  int64_t count = 0, top = 0;
  DType out_type = DType::kF32;  // kF32, kBF16 or kF16
  bool add = false;              // out, of kF32, becomes fadd(out, sum): the residual stream, in place
  void* out = nullptr;           // [count, n]

  void check() const;
};

}  // namespace isobit
