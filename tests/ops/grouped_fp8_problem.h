#pragma once
// A grouped FP8 problem: rows sorted by expert, or each expert's from the start of its capacity.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "numerics/gemm.h"
#include "numerics/testing.h"
#include "ops/gemm_fp8.h"

namespace isobit::testing {

struct GroupedFp8Problem {
  std::vector<int32_t> counts;  // rows of each expert
  int64_t capacity = 0;         // 0: contiguous
  int64_t n = 0, k = 0;
  DType out_type = DType::kBF16;
  std::vector<uint8_t> x, w;
  std::vector<float> x_scale, w_scale;
  std::vector<int32_t> rows;  // as the operator reads them

  GroupedFp8Problem(Random& r, std::vector<int32_t> counts_, int64_t capacity_, int64_t n_, int64_t k_, DType type)
      : counts(std::move(counts_)), capacity(capacity_), n(n_), k(k_), out_type(type) {
    int32_t sum = 0;
    if (capacity == 0) rows.push_back(0);
    for (const int32_t c : counts) rows.push_back(capacity == 0 ? sum += c : c);
    const int64_t row_bytes = fp8_row_bytes(k);
    x = values(r, m() * row_bytes);
    w = values(r, experts() * fp8_stored_rows(n) * row_bytes);
    x_scale = scales(r, fp8_blocks(k) * fp8_scale_stride(m()));
    w_scale = scales(r, experts() * fp8_blocks(n) * fp8_blocks(k));
  }

  int64_t experts() const { return static_cast<int64_t>(counts.size()); }
  int64_t m() const {
    if (capacity > 0) return experts() * capacity;
    int64_t sum = 0;
    for (const int32_t c : counts) sum += c;
    return sum;
  }
  int64_t first_row(int64_t e) const { return capacity > 0 ? e * capacity : rows[static_cast<size_t>(e)]; }
  size_t element() const { return dtype_info(out_type).block_bytes; }
  size_t out_bytes() const { return static_cast<size_t>(m() * n) * element(); }
  std::string text() const {
    return fmt::format("experts {} rows {} capacity {} n {} k {} out {}", experts(), fmt::join(counts, ","), capacity,
                       n, k, dtype_info(out_type).name);
  }
  // The arguments but for addresses.
  GroupedGemmFp8Args args() const {
    GroupedGemmFp8Args a;
    a.m = m();
    a.x_scale_stride = fp8_scale_stride(m());
    a.experts = experts();
    a.n = n;
    a.k = k;
    a.capacity = capacity;
    a.out_type = out_type;
    return a;
  }

  // The bits of output (i, j), i being expert e's, by rule N16.
  uint32_t expected(int64_t e, int64_t i, int64_t j) const {
    const int64_t row = fp8_row_bytes(k), blocks = fp8_blocks(k);
    std::vector<float> s(static_cast<size_t>(blocks));
    for (int64_t b = 0; b < blocks; b++) {
      s[static_cast<size_t>(b)] = x_scale[static_cast<size_t>(b * fp8_scale_stride(m()) + i)];
    }
    const float v = numerics::gemm_fp8_dot(&x[static_cast<size_t>(i * row)],
                                           &w[static_cast<size_t>((e * fp8_stored_rows(n) + j) * row)], s.data(),
                                           &w_scale[static_cast<size_t>((e * fp8_blocks(n) + j / 128) * blocks)], k);
    if (out_type == DType::kF32) return numerics::bits(numerics::canonical(v));
    return out_type == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
  }

  // Compares up to `samples` outputs of each expert with the rule, and that the rows of no expert are still 0xcd.
  void check(Random& r, const std::vector<uint8_t>& out, int64_t samples) const {
    std::vector<bool> owned(static_cast<size_t>(m()), false);
    for (int64_t e = 0; e < experts(); e++) {
      const int64_t count = counts[static_cast<size_t>(e)], total = count * n;
      for (int64_t i = 0; i < count; i++) owned[static_cast<size_t>(first_row(e) + i)] = true;
      for (int64_t s = 0; s < std::min(samples, total); s++) {
        const int64_t at = total <= samples ? s : s == 0 ? total - 1 : r.range(0, total - 1);
        const int64_t i = first_row(e) + at / n, j = at % n;
        uint32_t got = 0;
        std::memcpy(&got, &out[static_cast<size_t>(i * n + j) * element()], element());
        ASSERT_EQ(got, expected(e, i, j)) << "expert " << e << " row " << i << " column " << j << "; " << text();
      }
    }
    const size_t row_bytes = static_cast<size_t>(n) * element();
    for (int64_t i = 0; i < m(); i++) {
      if (owned[static_cast<size_t>(i)]) continue;
      for (size_t b = 0; b < row_bytes; b++)
        ASSERT_EQ(out[static_cast<size_t>(i) * row_bytes + b], 0xcd) << "row " << i;
    }
  }

  // Row counts with empty experts, experts of one row and, for tiles of 8 to 128 rows, ends in the middle of a tile.
  static std::vector<int32_t> draw_counts(Random& r, int experts, int most) {
    std::vector<int32_t> counts;
    for (int e = 0; e < experts; e++) {
      const int kind = r.below(5);
      counts.push_back(kind == 0 ? 0 : kind == 1 ? 1 : 1 + r.below(most));
    }
    return counts;
  }

 private:
  // Rows of whole blocks, zero from k on.
  std::vector<uint8_t> values(Random& r, int64_t bytes) const {
    std::vector<uint8_t> v(static_cast<size_t>(bytes));
    for (size_t i = 0; i < v.size(); i++) {
      if (static_cast<int64_t>(i) % fp8_row_bytes(k) >= k) continue;
      v[i] = static_cast<uint8_t>(r.bits());
      if ((v[i] & 0x7f) == 0x7f && r.below(200) != 0) v[i] &= 0x80;  // now and then a NaN, which must stay in its row
    }
    return v;
  }
  static std::vector<float> scales(Random& r, int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (float& s : v) s = std::ldexp(static_cast<float>(r.between(1.0, 2.0)), static_cast<int>(r.range(-12, -6)));
    return v;
  }
};

}  // namespace isobit::testing
