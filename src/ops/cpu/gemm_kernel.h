#pragma once
// Between gemm.cpp (the plan) and gemm_kernel.cpp (the arithmetic, once for each SIMD target).
#include "ops/cpu/packed_linear.h"
#include "ops/gemm.h"

namespace isobit::cpu {

constexpr int kRowBlock = 128;  // rows of x in one task: their prepared form stays in the second-level cache
constexpr int kSlice = 256;     // k unpacked at a time: 16 KB of weights, in the first-level cache

// Exponents (biased) of the activations for which the vector kernel is exact.
constexpr int kActivationExponentMin = 127 - 51, kActivationExponentMax = 127 + 15;

// x as the kernel wants it, K filled with zeros to a multiple of kGroup.
struct PreparedRows {
  int64_t padded = 0;          // K, filled
  float* value = nullptr;      // [m][padded]
  uint8_t* below = nullptr;    // [m][padded]: exponent under the largest of the block of 16; 255 for a zero
  int32_t* top = nullptr;      // [m][padded / 16]: that largest, biased, less 127
  uint8_t* general = nullptr;  // [m]: 1: this row needs the general step
};

struct GemmScratch {
  alignas(64) float w[kSlice * kPanel];
  alignas(64) uint8_t exponent[kSlice * kPanel];  // [k / 4][column][k % 4], biased
  alignas(64) uint16_t w16[kSlice * kPanel];      // for the general step
  alignas(64) float acc[2][kRowBlock * kPanel];   // gate and up, or one of them
  alignas(64) float sum[kRowBlock * kPanel];      // chunks of K added so far
};

struct GemmJob {
  const GemmArgs* args;
  const PackedLinear* w;
  PreparedRows x;
};

using PrepareFn = void (*)(const GemmJob& job, int64_t row);
// One panel (of a gated pair: panel and its partner) for rows [begin, end), at most kRowBlock of them.
using PanelFn = void (*)(const GemmJob& job, int64_t begin, int64_t end, int64_t panel, GemmScratch& scratch);

PrepareFn prepare_row_for(int64_t simd);
PanelFn gemm_panel_for(int64_t simd);

}  // namespace isobit::cpu
