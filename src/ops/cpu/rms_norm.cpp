// RMSNorm by rule N8: the 1024 lanes of the sum are an array, whatever the width of a vector.
#include <algorithm>

#include "numerics/norm.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rms_norm.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

// lane[0..count) become their neighbours' sums, count / 2 of them. count is a power of two.
void AddNeighbours(float* lane, size_t count) {
  size_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const F32 d;
  const size_t n = hn::Lanes(d);
  for (; 2 * (j + n) <= count; j += n) {
    const auto low = hn::Load(d, lane + 2 * j), high = hn::Load(d, lane + 2 * j + n);
    hn::Store(hn::Add(hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low)), d, lane + j);
  }
#endif
  for (; 2 * j < count; j++) lane[j] = numerics::fadd(lane[2 * j], lane[2 * j + 1]);
}

float SumOfSquares(const float* x, size_t n) {
  const F32 d;
  // Lanes past n stay +0 and add nothing: the tree is over the power of two that holds n.
  size_t lanes = 1;
  while (lanes < n && lanes < numerics::kSumLanes) lanes *= 2;
  HWY_ALIGN float lane[numerics::kSumLanes];
  std::fill_n(lane, lanes, 0.0f);
  for (size_t start = 0; start < n; start += numerics::kSumLanes) {
    const size_t count = std::min<size_t>(n - start, numerics::kSumLanes);
    size_t j = 0;
    for (; j + hn::Lanes(d) <= count; j += hn::Lanes(d)) {
      const auto v = hn::LoadU(d, x + start + j);
      hn::Store(Fma(d, v, v, hn::Load(d, lane + j)), d, lane + j);
    }
    for (; j < count; j++) lane[j] = numerics::ffma(x[start + j], x[start + j], lane[j]);
  }
  for (; lanes > 1; lanes /= 2) AddNeighbours(lane, lanes);
  return lane[0];
}

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
