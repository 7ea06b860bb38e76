#pragma once
// A grouped FP8 problem: rows sorted by expert, or each expert's from the start of its capacity.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "numerics/gemm.h"
#include "numerics/testing.h"
#include "ops/gemm_fp8.h"
#include "ops/grouped_rows.h"

namespace isobit::testing {

struct GroupedFp8Problem : GroupedRows {
  std::vector<uint8_t> x, w;
  std::vector<float> x_scale, w_scale;

  GroupedFp8Problem(Random& r, std::vector<int32_t> counts_, int64_t capacity_, int64_t n_, int64_t k_, DType type)
      : GroupedRows(std::move(counts_), capacity_, n_, k_, type) {
    const int64_t row_bytes = fp8_row_bytes(k);
    x = values(r, m() * row_bytes);
    w = values(r, experts() * fp8_stored_rows(n) * row_bytes);
    x_scale = scales(r, fp8_blocks(k) * fp8_scale_stride(m()));
    w_scale = scales(r, experts() * fp8_blocks(n) * fp8_blocks(k));
  }

  std::string text() const override {
    return fmt::format("experts {} rows {} capacity {} n {} k {} out {}", experts(), fmt::join(counts, ","), capacity,
                       n, k, dtype_info(out_type).name);
  }
  // The arguments but for addresses.
  GroupedGemmFp8Args args() const {
    auto a = shape<GroupedGemmFp8Args>();
    a.x_scale_stride = fp8_scale_stride(m());
    return a;
  }

  // The bits of output (i, j), i being expert e's, by rule N16.
  uint32_t expected(int64_t e, int64_t i, int64_t j) const override {
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
