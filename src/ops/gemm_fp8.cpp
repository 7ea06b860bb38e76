#include "ops/gemm_fp8.h"

#include <cmath>
#include <cstdint>

#include "base/error.h"

namespace isobit {
namespace {

void check_pointer(const char* op, const char* name, const void* p, uintptr_t alignment) {
  require(p != nullptr, "{}: {} is null", op, name);
  require(reinterpret_cast<uintptr_t>(p) % alignment == 0, "{}: {} is at {}; it must be aligned to {} bytes", op, name,
          p, alignment);
}

void check_scale_stride(const char* op, const char* name, int64_t stride, int64_t rows) {
  require(stride >= rows && stride % 4 == 0, "{}: {} is {}; it must be a multiple of 4 and at least the {} rows", op,
          name, stride, rows);
}

// The copy engine counts rows and columns in int32.
constexpr int64_t kMost = INT32_MAX - 1024;
constexpr int64_t kMostExperts = 1024;

}  // namespace

void GemmFp8Args::check() const {
  require(m >= 0 && m <= kMost, "gemm_fp8: m is {}; it must be in [0, {}]", m, kMost);
  require(n > 0 && n <= kMost, "gemm_fp8: n is {}; it must be in [1, {}]", n, kMost);
  require(k > 0 && k <= kMost, "gemm_fp8: k is {}; it must be in [1, {}]", k, kMost);
  require(out_type == DType::kBF16 || out_type == DType::kF16 || out_type == DType::kF32,
          "gemm_fp8: out_type is {}; it must be BF16, F16 or F32", dtype_info(out_type).name);
  require(out_stride == 0 || (out_stride >= n && out_stride <= kMost),
          "gemm_fp8: out_stride is {}; it must be 0 or from n ({}) to {}", out_stride, n, kMost);
  require(!add || out_type == DType::kF32, "gemm_fp8: out_type is {}; only F32 can be added to",
          dtype_info(out_type).name);
  if (m == 0) return;
  check_scale_stride("gemm_fp8", "x_scale_stride", x_scale_stride, m);
  check_pointer("gemm_fp8", "x", x, 16);
  check_pointer("gemm_fp8", "x_scale", x_scale, 16);
  check_pointer("gemm_fp8", "w", w, 16);
  check_pointer("gemm_fp8", "w_scale", w_scale, 4);
  check_pointer("gemm_fp8", "out", out, dtype_info(out_type).block_bytes);
}

void GroupedGemmFp8Args::check() const {
  const char* op = "grouped_gemm_fp8";
  require(m >= 0 && m <= kMost, "{}: m is {}; it must be in [0, {}]", op, m, kMost);
  require(n > 0 && n <= kMost, "{}: n is {}; it must be in [1, {}]", op, n, kMost);
  require(k > 0 && k <= kMost, "{}: k is {}; it must be in [1, {}]", op, k, kMost);
  require(experts > 0 && experts <= kMostExperts, "{}: experts is {}; it must be in [1, {}]", op, experts,
          kMostExperts);
  require(experts * fp8_stored_rows(n) <= kMost, "{}: {} experts of {} rows are more than {}", op, experts, n, kMost);
  require(capacity == 0 || m == experts * capacity, "{}: m is {}; {} experts of {} rows of capacity have {}", op, m,
          experts, capacity, experts * capacity);
  require(out_type == DType::kBF16 || out_type == DType::kF16 || out_type == DType::kF32,
          "{}: out_type is {}; it must be BF16, F16 or F32", op, dtype_info(out_type).name);
  if (m == 0) return;
  check_scale_stride(op, "x_scale_stride", x_scale_stride, m);
  check_pointer(op, "x", x, 16);
  check_pointer(op, "x_scale", x_scale, 16);
  check_pointer(op, "w", w, 16);
  check_pointer(op, "w_scale", w_scale, 4);
  check_pointer(op, "rows", rows, 4);
  check_pointer(op, "out", out, dtype_info(out_type).block_bytes);
}

void GateArgs::check() const {
  require(count >= 0 && count <= kMost, "gate: count is {}; it must be in [0, {}]", count, kMost);
  require(n > 0 && n <= kMost, "gate: n is {}; it must be in [1, {}]", n, kMost);
  require(kind != GatedKind::kNone, "gate: kind is none; it must be silu or gelu");
  require(out_type == DType::kBF16 || out_type == DType::kF16, "gate: out_type is {}; it must be BF16 or F16",
          dtype_info(out_type).name);
  if (count == 0) return;
  check_pointer("gate", "x", x, 16);
  check_pointer("gate", "out", out, 2);
}

void QuantizeFp8Args::check() const {
  require(count >= 0 && count <= kMost, "quantize_fp8: count is {}; it must be in [0, {}]", count, kMost);
  require(n > 0 && n <= kMost, "quantize_fp8: n is {}; it must be in [1, {}]", n, kMost);
  const bool pairs = gated != GatedKind::kNone;
  require(weight == nullptr || !pairs, "quantize_fp8: a norm's weight and `gated` exclude each other");
  require(round_type == DType::kBF16 || round_type == DType::kF16,
          "quantize_fp8: round_type is {}; it must be BF16 or F16", dtype_info(round_type).name);
  const bool half = x_type == DType::kBF16 || x_type == DType::kF16, wide = x_type == DType::kF32;
  require(weight != nullptr ? wide
          : pairs           ? (half || wide)
                            : half,
          "quantize_fp8: x_type is {}; plain values are BF16 or F16, a norm's input F32, gate and up any of them",
          dtype_info(x_type).name);
  require(weight == nullptr || (std::isfinite(eps) && eps >= 0.0f), "quantize_fp8: eps is {}; it must not be negative",
          eps);
  if (count == 0) return;
  check_scale_stride("quantize_fp8", "scale_stride", scale_stride, count);
  check_pointer("quantize_fp8", "x", x, 16);
  check_pointer("quantize_fp8", "out", out, 16);
  check_pointer("quantize_fp8", "scale", scale, 4);
}

}  // namespace isobit
