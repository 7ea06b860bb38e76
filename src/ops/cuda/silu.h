#pragma once
// SiLU (rule N11) of several values at once. The compiler's division branches for each quotient to see to operands near
// the ends of the range, so that quotients wait for one another; here all are looked at together, and those between run
// side by side by the same sequence: a reciprocal refined once and a quotient corrected twice by its exact remainder.
#include "ops/cuda/device_math.h"

namespace isobit::cuda {

template <int n>
__device__ inline void silu(float (&x)[n]) {
  using numerics::bits, numerics::ffma;
  constexpr uint32_t kOne = 127u << 23, kUnit = 1u << 23;
  // |x| in [2^-60, 2^60) and the divisor below 2^124. It is above 2^60 for x < -41 alone: no quotient is below 2^-120.
  bool plain = true;
  float d[n];
#pragma unroll
  for (int i = 0; i < n; i++) {
    d[i] = numerics::fadd(1.0f, ex2(numerics::fmul(x[i], -numerics::kLog2E)));
    plain = plain && (bits(x[i]) & 0x7fffffff) - (kOne - 60 * kUnit) < 120 * kUnit && bits(d[i]) < kOne + 124 * kUnit;
  }
  if (!plain) {
#pragma unroll
    for (int i = 0; i < n; i++) x[i] = numerics::fdiv(x[i], d[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < n; i++) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d[i]));
    r = ffma(ffma(-d[i], r, 1.0f), r, r);
    float q = numerics::fmul(x[i], r);
    q = ffma(ffma(-d[i], q, x[i]), r, q);
    x[i] = ffma(ffma(-d[i], q, x[i]), r, q);
  }
}

}  // namespace isobit::cuda
