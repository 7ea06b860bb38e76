#pragma once
// The block-scaled FP8 GEMM (rule N16) and the quantisation of its activations (rule N18).
#include <cstdint>

#include "base/dtype.h"

namespace isobit {

constexpr int64_t kFp8Block = 128;  // values that share a scale; of weights 128 × 128

// e4m3 matrices stand in rows of whole blocks, the rest of a last block zero; weights in whole groups of 32 rows, the
// contents of rows past n free.
constexpr int64_t fp8_blocks(int64_t k) { return (k + kFp8Block - 1) / kFp8Block; }
constexpr int64_t fp8_row_bytes(int64_t k) { return fp8_blocks(k) * kFp8Block; }
constexpr int64_t fp8_stored_rows(int64_t n) { return (n + 31) / 32 * 32; }
// Scales of activations are M-major: of (row, block) at [block · stride + row], stride a multiple of 4, at least m.
constexpr int64_t fp8_scale_stride(int64_t m) { return (m + 3) / 4 * 4; }

// out[m, n] = round(Σ over blocks of K ascending of (x·Wᵀ within the block) · x_scale · w_scale), as N16 states it.
struct GemmFp8Args {
  const uint8_t* x = nullptr;      // [m, fp8_row_bytes(k)]
  const float* x_scale = nullptr;  // [fp8_blocks(k), x_scale_stride]
  int64_t m = 0, x_scale_stride = 0;
  const uint8_t* w = nullptr;      // [fp8_stored_rows(n), fp8_row_bytes(k)]
  const float* w_scale = nullptr;  // [fp8_blocks(n), fp8_blocks(k)]
  int64_t n = 0, k = 0;
  DType out_type = DType::kBF16;  // kBF16, kF16, or kF32: the accumulator itself
  void* out = nullptr;            // [m, n]
  int64_t out_stride = 0;         // elements from a row of out to the next; 0: n
  const float* bias = nullptr;    // [n] or null: fadd(acc, bias[j])
  bool add = false;               // out, of kF32, becomes fadd(out, acc (+ bias)): the residual stream, in place

  int64_t row_stride() const { return out_stride == 0 ? n : out_stride; }
  void check() const;
};

// Experts' matrices, each for its own rows of x (rule N16 for every row, whatever rows stand beside it). How many rows
// an expert has is read where the operator runs: a captured launch serves any routing.
//   contiguous (capacity 0): x's rows are sorted by expert, rows[e] to rows[e + 1] - 1 are expert e's; rows: [experts +
//   1] masked (capacity > 0):   expert e's are the first rows[e] of the `capacity` rows from e · capacity on; rows:
//   [experts]
// Rows of out that are no expert's are left alone. Numbers outside [0, m] or [0, capacity] count as the nearest inside.
struct GroupedGemmFp8Args {
  const uint8_t* x = nullptr;      // [m, fp8_row_bytes(k)]
  const float* x_scale = nullptr;  // [fp8_blocks(k), x_scale_stride]
  int64_t m = 0, x_scale_stride = 0;
  const uint8_t* w = nullptr;      // [experts, fp8_stored_rows(n), fp8_row_bytes(k)]
  const float* w_scale = nullptr;  // [experts, fp8_blocks(n), fp8_blocks(k)]
  int64_t experts = 0, n = 0, k = 0;
  const int32_t* rows = nullptr;
  int64_t capacity = 0;    // masked: m = experts · capacity
  int64_t expected_m = 0;  // masked: rows an expert is likely to have, for speed alone; 0: unknown
  DType out_type = DType::kBF16;
  void* out = nullptr;  // [m, n]

  void check() const;
};

// What stands between a pair of gate and up: fmul(act(gate), up).
enum class GatedKind : uint8_t { kNone, kSilu, kGelu };

// out[i, j] = round(fmul(act(x[i, j]), x[i, n + j])), x being [count, 2n].
struct GateArgs {
  const float* x = nullptr;
  int64_t count = 0, n = 0;
  GatedKind kind = GatedKind::kSilu;
  DType out_type = DType::kBF16;  // kBF16 or kF16
  uint16_t* out = nullptr;        // [count, n]

  void check() const;
};

// out = e4m3 of v / scale over every 128 values of a row, where v[i, j] is
//   x[i, j]                                                                (no weight, not gated; x bf16 or f16)
//   round(rms_norm(x[i, :]))[j] by rule N8                                 (weight given; x f32)
//   round(fmul(act(x[i, j]), x[i, n + j])), x being [count, 2n]            (gated; x f32, bf16 or f16)
// round: to round_type. The same bytes as the rounding operator followed by plain quantisation.
struct QuantizeFp8Args {
  const void* x = nullptr;
  DType x_type = DType::kBF16;
  int64_t count = 0, n = 0;
  const float* weight = nullptr;  // [n]
  float eps = 1e-5f;
  GatedKind gated = GatedKind::kNone;
  DType round_type = DType::kBF16;  // kBF16 or kF16
  uint8_t* out = nullptr;           // [count, fp8_row_bytes(n)]
  float* scale = nullptr;           // [fp8_blocks(n), scale_stride]
  int64_t scale_stride = 0;

  void check() const;
};

}  // namespace isobit
