#pragma once
// N13. Masses: the softmax over the vocabulary in fixed point, so that sums have no order. N14. Log-probabilities.
#include "numerics/contract.h"
#include "numerics/ex2.h"
#include "numerics/f64.h"

namespace isobit::numerics {

// log2 of a token's probability relative to the best: fma(y, log2 e, -(ymax · log2 e)).
ISOBIT_HD float relative_log2(float y, float ymax) { return ffma(y, kLog2E, -fmul(ymax, kLog2E)); }

// floor(2^44 · 2^t), t = relative_log2(y, ymax). A -infinity logit has no mass.
ISOBIT_HD uint64_t mass(float y, float ymax) {
  const uint32_t u = bits(ex2(relative_log2(y, ymax)));
  const int shift = static_cast<int>(u >> 23) - 127 - 23 + kMassBits;  // ex2 is never negative, subnormal or -0
  const uint64_t significand = (u & 0x7fffff) | 0x800000;
  if (u == 0 || shift <= -24) return 0;
  return shift >= 0 ? significand << shift : significand >> -shift;
}

// ln of the probability of a logit y: (y - ymax) - (ln Z - 44·ln 2), Z = Σ mass, in double, rounded once to f32.
ISOBIT_HD float log_probability(float y, float ymax, uint64_t z) {
  const double log_sum = dfma(static_cast<double>(-kMassBits), kLn2, ln(static_cast<double>(z)));
  return static_cast<float>(dadd(dadd(static_cast<double>(y), -static_cast<double>(ymax)), -log_sum));
}

}  // namespace isobit::numerics
