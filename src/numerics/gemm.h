#pragma once
// N7. GEMM: y[m, n] = Σ_k x[m, k]·w[n, k], one chain of dot16 over k ascending from +0; a ragged end is filled with
// zeros. A narrow matrix (N ≤ 1024 and K > 2048, of the whole matrix after fusing, before any sharding) takes K in
// chunks of 2048, each a chain from +0, added in f32 in ascending order. M decides nothing. N16. Block-scaled FP8: for
// each 128 of K a chain of four dot32 from +0, folded by one fma with the product of scales.
#include "numerics/contract.h"
#include "numerics/dot.h"

namespace isobit::numerics {

ISOBIT_HD int64_t gemm_chunk_k(int64_t n, int64_t k) { return n <= kGemmNarrowN && k > kGemmChunkK ? kGemmChunkK : k; }

// x[k], w[k]: bits of bf16 (or f16). chunk: gemm_chunk_k(N, K).
template <Operand kind = Operand::kBF16>
ISOBIT_HD float gemm_dot(const uint16_t* x, const uint16_t* w, int64_t k, int64_t chunk) {
  float sum = 0.0f;
  for (int64_t start = 0; start < k; start += chunk) {
    const int64_t end = start + chunk < k ? start + chunk : k;
    float c = 0.0f;
    int64_t i = start;
    for (; i + 16 <= end; i += 16) c = dot16<kind>(c, x + i, w + i);
    if (i < end) {
      uint16_t a[16] = {}, b[16] = {};
      for (int64_t j = i; j < end; j++) a[j - i] = x[j], b[j - i] = w[j];
      c = dot16<kind>(c, a, b);
    }
    sum = start == 0 ? c : fadd(sum, c);
  }
  return sum;
}

// x[k], w[k]: bits of e4m3. x_scale[k/128], w_scale[k/128]: of this row's and this output's blocks, rounded up. A
// ragged last block is filled with zeros.
ISOBIT_HD float gemm_fp8_dot(const uint8_t* x, const uint8_t* w, const float* x_scale, const float* w_scale,
                             int64_t k) {
  float acc = 0.0f;
  for (int64_t block = 0; block * 128 < k; block++) {
    float p = 0.0f;
    for (int64_t i = block * 128; i < block * 128 + 128 && i < k; i += 32) {
      uint8_t a[32] = {}, b[32] = {};
      for (int64_t j = i; j < i + 32 && j < k; j++) a[j - i] = x[j], b[j - i] = w[j];
      p = dot32(p, a, b);
    }
    acc = ffma(p, fmul(x_scale[block], w_scale[block]), acc);
  }
  return acc;
}

}  // namespace isobit::numerics
