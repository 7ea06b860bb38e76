#include "ops/moe.h"

#include <cstdint>

#include "base/error.h"

namespace isobit {
namespace {

constexpr int64_t kMostMoeRows = INT32_MAX - 1024;  // the copy engine counts rows and columns in int32
constexpr int64_t kMostMoeExperts = 1024, kMostSlots = 256;

void check_aligned(const char* op, const char* name, const void* p, uintptr_t alignment) {
  require(p != nullptr && reinterpret_cast<uintptr_t>(p) % alignment == 0,
          "{}: {} is at {}; it must not be null, and be aligned to {} bytes", op, name, p, alignment);
}

bool is_half_type(DType t) { return t == DType::kBF16 || t == DType::kF16; }

}  // namespace

void GroupedGemmArgs::check() const {
  const char* op = "grouped_gemm";
  require(m >= 0 && m <= kMostMoeRows, "{}: m is {}; it must be in [0, {}]", op, m, kMostMoeRows);
  require(n > 0 && n <= kMostMoeRows, "{}: n is {}; it must be in [1, {}]", op, n, kMostMoeRows);
  require(k > 0 && k <= kMostMoeRows && k % 8 == 0, "{}: k is {}; it must be a multiple of 8 in [8, {}]", op, k,
          kMostMoeRows);
  require(experts > 0 && experts <= kMostMoeExperts && experts * n <= kMostMoeRows,
          "{}: {} experts of {} rows; there may be 1 to {} of {} rows together", op, experts, n, kMostMoeExperts,
          kMostMoeRows);
  require(capacity == 0 || m == experts * capacity, "{}: m is {}; {} experts of {} rows of capacity have {}", op, m,
          experts, capacity, experts * capacity);
  require(is_half_type(type), "{}: type is {}; it must be BF16 or F16", op, dtype_info(type).name);
  require(out_type == type || out_type == DType::kF32, "{}: out_type is {}; it must be F32 or x's {}", op,
          dtype_info(out_type).name, dtype_info(type).name);
  if (m == 0) return;
  check_aligned(op, "x", x, 16);
  check_aligned(op, "w", w, 16);
  check_aligned(op, "rows", rows, 4);
  check_aligned(op, "out", out, dtype_info(out_type).block_bytes);
}

void CombineArgs::check() const {
  const char* op = "combine";
  require(count >= 0 && count <= kMostMoeRows, "{}: count is {}; it must be in [0, {}]", op, count, kMostMoeRows);
  require(n > 0 && n <= kMostMoeRows, "{}: n is {}; it must be in [1, {}]", op, n, kMostMoeRows);
  require(rows >= 0 && rows <= kMostMoeRows, "{}: rows is {}; it must be in [0, {}]", op, rows, kMostMoeRows);
  require(top > 0 && top <= kMostSlots, "{}: top is {}; it must be in [1, {}]", op, top, kMostSlots);
  require(is_half_type(x_type) || x_type == DType::kF32, "{}: x_type is {}; it must be BF16, F16 or F32", op,
          dtype_info(x_type).name);
  require(is_half_type(out_type) || out_type == DType::kF32, "{}: out_type is {}; it must be BF16, F16 or F32", op,
          dtype_info(out_type).name);
  require(!add || out_type == DType::kF32, "{}: out_type is {}; only F32 can be added to", op,
          dtype_info(out_type).name);
  if (count == 0) return;
  check_aligned(op, "x", x, dtype_info(x_type).block_bytes);
  check_aligned(op, "row", row, 4);
  check_aligned(op, "weight", weight, 4);
  check_aligned(op, "out", out, dtype_info(out_type).block_bytes);
}

}  // namespace isobit
