#pragma once
// N11. Activations through ex2 and IEEE division.
#include "numerics/contract.h"
#include "numerics/ex2.h"

namespace isobit::numerics {

// x · sigmoid(x) = x / (1 + 2^(-x·log2 e)).
ISOBIT_HD float silu(float x) { return fdiv(x, fadd(1.0f, ex2(fmul(x, -kLog2E)))); }

// tanh x = 1 - 2 / (1 + 2^(2x·log2 e)).
ISOBIT_HD float tanh(float x) { return fsub(1.0f, fdiv(2.0f, fadd(1.0f, ex2(fmul(x, 2 * kLog2E))))); }

// 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (the "tanh" GELU).
ISOBIT_HD float gelu_tanh(float x) {
  const float inner = fmul(0.7978845608028654f, ffma(fmul(0.044715f, fmul(x, x)), x, x));
  return fmul(fmul(0.5f, x), fadd(1.0f, tanh(inner)));
}

// N26. A logit held within ±cap: cap·tanh(x / cap), the division as a product with fdiv(1, cap).
ISOBIT_HD float soft_capped(float x, float cap) { return fmul(cap, tanh(fmul(x, fdiv(1.0f, cap)))); }

}  // namespace isobit::numerics
