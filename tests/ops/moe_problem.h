#pragma once
// A grouped bf16 or f16 problem, and a weighted sum of experts' outputs, with what rules N7 and N23 expect of them.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "numerics/gemm.h"
#include "numerics/moe.h"
#include "numerics/testing.h"
#include "ops/grouped_rows.h"
#include "ops/moe.h"

namespace isobit::testing {

inline uint16_t narrow_half(float v, DType t) {
  return t == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
}
inline float widen_half(uint16_t h, DType t) {
  return t == DType::kBF16 ? numerics::bf16_to_f32(h) : numerics::f16_to_f32(h);
}
inline std::vector<uint16_t> draw_halves(Random& r, int64_t count, DType t, int nan_in) {
  std::vector<uint16_t> v(static_cast<size_t>(count));
  for (uint16_t& h : v) {
    h = narrow_half(std::ldexp(r.normal(), static_cast<int>(r.range(-3, 2))), t);
    if (r.below(nan_in) == 0) h = r.below(2) == 0 ? 0x7fff : t == DType::kBF16 ? 0x7f80 : 0x7c00;
  }
  return v;
}

struct GroupedProblem : GroupedRows {
  DType type = DType::kBF16;
  std::vector<uint16_t> x, w;

  GroupedProblem(Random& r, std::vector<int32_t> counts_, int64_t capacity_, int64_t n_, int64_t k_, DType type_,
                 bool wide)
      : GroupedRows(std::move(counts_), capacity_, n_, k_, wide ? DType::kF32 : type_), type(type_) {
    x = draw_halves(r, m() * k, type, 5000);
    w = draw_halves(r, experts() * n * k, type, 100000);
  }

  std::string text() const override {
    return fmt::format("experts {} rows {} capacity {} n {} k {} type {} out {}", experts(), fmt::join(counts, ","),
                       capacity, n, k, dtype_info(type).name, dtype_info(out_type).name);
  }
  // The arguments but for addresses.
  GroupedGemmArgs args() const {
    auto a = shape<GroupedGemmArgs>();
    a.type = type;
    return a;
  }

  // The bits of output (i, j), i being expert e's, by rule N7.
  uint32_t expected(int64_t e, int64_t i, int64_t j) const override {
    const uint16_t *row = &x[static_cast<size_t>(i * k)], *matrix = &w[static_cast<size_t>((e * n + j) * k)];
    const int64_t chunk = numerics::gemm_chunk_k(n, k);
    const float v = type == DType::kBF16 ? numerics::gemm_dot<numerics::Operand::kBF16>(row, matrix, k, chunk)
                                         : numerics::gemm_dot<numerics::Operand::kF16>(row, matrix, k, chunk);
    return out_type == DType::kF32 ? numerics::bits(numerics::canonical(v)) : narrow_half(v, type);
  }
};

struct CombineProblem {
  CombineArgs args;  // but for addresses
  std::vector<uint8_t> x, out;
  std::vector<int32_t> row;
  std::vector<float> weight;

  static CombineProblem draw(Random& r) {
    constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
    CombineProblem p;
    CombineArgs& a = p.args;
    a.x_type = kTypes[r.below(3)];
    a.out_type = kTypes[r.below(3)];
    a.add = a.out_type == DType::kF32 && r.below(2) == 0;
    a.rows = r.below(60);
    a.n = 1 + r.below(r.below(2) == 0 ? 40 : 3000);
    a.count = 1 + r.below(30);
    a.top = 1 + r.below(r.below(4) == 0 ? 20 : 9);
    const auto value = [&](DType t) {
      const float v = r.below(300) == 0 ? numerics::from_bits(static_cast<uint32_t>(r.bits()))
                                        : std::ldexp(r.normal(), static_cast<int>(r.range(-12, 12)));
      return t == DType::kF32 ? numerics::bits(v) : narrow_half(v, t);
    };
    const auto fill = [&](int64_t count, DType t) {
      std::vector<uint8_t> bytes;
      for (int64_t i = 0; i < count; i++) {
        const uint32_t v = value(t);
        for (size_t b = 0; b < element(t); b++) bytes.push_back(static_cast<uint8_t>(v >> 8 * b));
      }
      return bytes;
    };
    p.x = fill(std::max<int64_t>(a.rows, 1) * a.n, a.x_type);
    p.out = fill(a.count * a.n, a.out_type);
    for (int64_t s = 0; s < a.count * a.top; s++) {
      p.row.push_back(r.below(12) == 0 ? (r.below(2) == 0 ? -1 : static_cast<int32_t>(a.rows))
                                       : static_cast<int32_t>(r.below(static_cast<int>(a.rows) + 1)));
      p.weight.push_back(r.below(20) == 0 ? (r.below(2) == 0 ? 0.0f : -0.0f) : static_cast<float>(r.between(0.0, 1.5)));
    }
    return p;
  }
  std::string text() const {
    return fmt::format("rows {} n {} count {} top {} x {} out {} add {}", args.rows, args.n, args.count, args.top,
                       dtype_info(args.x_type).name, dtype_info(args.out_type).name, args.add);
  }

  // What `out` must become, by rule N23.
  std::vector<uint8_t> expected() const {
    std::vector<uint8_t> want = out;
    for (int64_t t = 0; t < args.count; t++) {
      for (int64_t j = 0; j < args.n; j++) {
        std::vector<float> weights, values;
        for (int64_t s = t * args.top; s < (t + 1) * args.top; s++) {
          const int64_t from = row[static_cast<size_t>(s)];
          if (from < 0 || from >= args.rows) continue;
          weights.push_back(weight[static_cast<size_t>(s)]);
          values.push_back(read(x, args.x_type, from * args.n + j));
        }
        float v = numerics::combine(weights.data(), values.data(), static_cast<int64_t>(weights.size()));
        const int64_t at = t * args.n + j;
        if (args.add) v = numerics::fadd(read(out, DType::kF32, at), v);
        const size_t bytes = element(args.out_type);
        const uint32_t u =
            args.out_type == DType::kF32 ? numerics::bits(numerics::canonical(v)) : narrow_half(v, args.out_type);
        for (size_t b = 0; b < bytes; b++) want[static_cast<size_t>(at) * bytes + b] = static_cast<uint8_t>(u >> 8 * b);
      }
    }
    return want;
  }

 private:
  static size_t element(DType t) { return t == DType::kF32 ? 4 : 2; }
  static float read(const std::vector<uint8_t>& from, DType t, int64_t at) {
    uint32_t u = 0;
    for (size_t b = 0; b < element(t); b++) u |= uint32_t{from[static_cast<size_t>(at) * element(t) + b]} << 8 * b;
    return t == DType::kF32 ? numerics::from_bits(u) : widen_half(static_cast<uint16_t>(u), t);
  }
};

}  // namespace isobit::testing
