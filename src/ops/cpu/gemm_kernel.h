#pragma once
// Between gemm.cpp (the plan) and gemm_kernel.cpp (the arithmetic, once for each SIMD target).
#include "ops/cpu/packed_linear.h"
#include "ops/cpu/toward_zero.h"
#include "ops/gemm.h"

namespace isobit::cpu {

constexpr int kRowBlock = 128;    // rows of x in one task: their prepared form stays in the second-level cache
constexpr int kSinglePanels = 4;  // a single row's, taken at once: what begins and ends a panel is hidden under others
constexpr int kSlice = 256;       // k unpacked at a time, of all panels: 16 KB of weights, in the first-level cache

// Exponents (biased) of the activations for which the vector kernel is exact.
constexpr int kActivationExponentMin = 127 - 51, kActivationExponentMax = 127 + 15;

// The end (biased) of the exponents that kTwelve's chain takes; they begin at kWeightExponentMin.
constexpr int kTwelveExponentEnd = 127 + 26;

// Of a row of x: it needs the general step in panels' products; and in kTwelve's chain.
constexpr uint8_t kGeneralRow = 1, kGeneralTwelve = 2;

// x as the kernel wants it, K filled with zeros to a multiple of kGroup.
struct PreparedRows {
  int64_t padded = 0;               // K, filled
  float* value = nullptr;           // [m][padded]
  uint8_t* below = nullptr;         // [m][padded]: exponent under kActivationExponentMax; 255 for a zero
  uint32_t* below_pairs = nullptr;  // a single row's, [padded / 2]: the same in the high bytes of 16-bit words
  uint32_t* below_words = nullptr;  // a single row's, [padded]: the same, in both high bytes of a pair of words
  uint8_t* general = nullptr;       // [m]: kGeneralRow, kGeneralTwelve
};

struct GemmScratch {
  alignas(64) float w[kSlice * kPanel];
  alignas(64) uint8_t exponent[kSlice * kPanel];  // [k / 4][column][k % 4], biased
  alignas(64) uint16_t w16[kSlice * kPanel];      // for the general step
  alignas(64) float acc[2][kRowBlock * kPanel];   // of two panels
  alignas(64) float sum[2][kRowBlock * kPanel];   // chunks of K added so far
};

struct GemmJob {
  const GemmArgs* args;
  const PackedLinear* w;
  PreparedRows x;
};

using PrepareFn = void (*)(const GemmJob& job, int64_t row);
// One or two panels from `panel` on (of a gated pair: one and its partner) for rows [begin, end), at most kRowBlock of
// them.
using PanelFn = void (*)(const GemmJob& job, int64_t begin, int64_t end, int64_t panel, int64_t count,
                         GemmScratch& scratch);
// Panels [first, first + count) (of a gated pair: and their partners) for the one row there is.
using SingleFn = void (*)(const GemmJob& job, int64_t first, int64_t count, GemmScratch& scratch);

// Groups of a panel in a compact format, made kTwelve: data, the groups' bases, and the words of those spilled.
using PackTwelveFn = void (*)(PanelFormat from, const std::byte* compact, int64_t groups, std::byte* to, uint8_t* bases,
                              std::vector<uint16_t>& spill);

PrepareFn prepare_row_for(int64_t simd);
PanelFn gemm_panel_for(int64_t simd);
SingleFn gemm_single_for(int64_t simd);
PackTwelveFn pack_twelve_for(int64_t simd);

}  // namespace isobit::cpu
