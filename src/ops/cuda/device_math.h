#pragma once
// Device forms of the contract's rules where the hardware has the operation itself; numerics/ has the same in integers.
#include <cstdint>

#include "numerics/contract.h"
#include "numerics/ieee.h"

namespace isobit::cuda {

// N5.
__device__ inline float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// N11.
__device__ inline float silu(float x) {
  return numerics::fdiv(x, numerics::fadd(1.0f, ex2(numerics::fmul(x, -numerics::kLog2E))));
}
__device__ inline float tanh(float x) {
  const float e = ex2(numerics::fmul(x, 2 * numerics::kLog2E));
  return numerics::fsub(1.0f, numerics::fdiv(2.0f, numerics::fadd(1.0f, e)));
}
__device__ inline float gelu_tanh(float x) {
  using numerics::ffma, numerics::fmul;
  const float inner = fmul(0.7978845608028654f, ffma(fmul(0.044715f, fmul(x, x)), x, x));
  return fmul(fmul(0.5f, x), numerics::fadd(1.0f, tanh(inner)));
}

// N2: two values rounded to nearest even, the first in the low half; NaN is 0x7fff.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

}  // namespace isobit::cuda
