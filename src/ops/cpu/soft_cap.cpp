// The soft cap of logits by rule N26.
#include <algorithm>

#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/soft_cap.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

void CapSpan(float cap, float* x, size_t n) {
  const F32 d;
  const auto outer = hn::Set(d, cap), inner = hn::Set(d, numerics::fdiv(1.0f, cap));
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    hn::StoreU(Canonical(d, hn::Mul(outer, Tanh(d, hn::Mul(hn::LoadU(d, x + i), inner)))), d, x + i);
  }
  for (; i < n; i++) x[i] = numerics::canonical(numerics::soft_capped(x[i], cap));
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(CapSpan);

void soft_cap(const Cpu& cpu, const SoftCapArgs& a) {
  constexpr int64_t kSpan = 4096;
  const auto cap_span = for_target(HWY_DISPATCH_TABLE(CapSpan), cpu.simd);
  cpu.pool.parallel_for((a.count + kSpan - 1) / kSpan, [&](int, int64_t i) {
    cap_span(a.cap, a.x + i * kSpan, static_cast<size_t>(std::min(kSpan, a.count - i * kSpan)));
  });
}

}  // namespace isobit::cpu
#endif
