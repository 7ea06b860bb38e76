// RMSNorm by rule N8: the 1024 lanes of the sum are an array, whatever the width of a vector.
#include <algorithm>

#include "numerics/norm.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rms_norm.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/norm-inl.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

void AddRow(const RmsNormArgs& a, const float* x, float scale, float* to) {
  const F32 d;
  const auto n = static_cast<size_t>(a.n);
  size_t j = 0;
  for (; j + hn::Lanes(d) <= n; j += hn::Lanes(d)) {
    const auto y = hn::Mul(hn::Mul(hn::LoadU(d, x + j), hn::Set(d, scale)), hn::LoadU(d, a.weight + j));
    hn::StoreU(Canonical(d, hn::Add(hn::LoadU(d, to + j), y)), d, to + j);
  }
  for (; j < n; j++) {
    to[j] = numerics::canonical(numerics::fadd(to[j], numerics::rms_value(x[j], scale, a.weight[j])));
  }
}

// Row i of the output, of x's row at `x`.
void NormRow(const RmsNormArgs& a, const float* x, int64_t i) {
  const F32 d;
  const auto n = static_cast<size_t>(a.n);
  const float scale = numerics::rms_scale(SumOfSquares(x, n), a.n, a.eps);
  if (a.add_to != nullptr) return AddRow(a, x, scale, a.add_to + i * a.n);
  uint16_t* out = a.out + i * a.n;
  size_t j = 0;
  if (a.out_type == DType::kBF16) {
    for (; j + hn::Lanes(d) <= n; j += hn::Lanes(d)) {
      StoreBF16(d, hn::Mul(hn::Mul(hn::LoadU(d, x + j), hn::Set(d, scale)), hn::LoadU(d, a.weight + j)), out + j);
    }
  }
  for (; j < n; j++) {
    const float y = numerics::rms_value(x[j], scale, a.weight[j]);
    out[j] = a.out_type == DType::kBF16 ? numerics::f32_to_bf16(y) : numerics::f32_to_f16(y);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(NormRow);

void rms_norm(const Cpu& cpu, const RmsNormArgs& a) {
  const auto norm_row = for_target(HWY_DISPATCH_TABLE(NormRow), cpu.simd);
  cpu.pool.parallel_for(a.count, [&](int, int64_t i) {
    const int64_t row = a.rows != nullptr ? a.rows[i] : i;
    if (row >= 0) {
      norm_row(a, a.x + row * a.n, i);
    } else if (a.add_to == nullptr) {
      std::fill_n(a.out + i * a.n, a.n, uint16_t{0});
    }
  });
}

}  // namespace isobit::cpu
#endif
