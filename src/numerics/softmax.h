#pragma once
// N13. Masses: the softmax over the vocabulary in fixed point, so that sums have no order. N14. Log-probabilities.
#include "numerics/contract.h"
#include "numerics/ex2.h"
#include "numerics/f64.h"

namespace isobit::numerics {

// log2 of a token's probability relative to the best: (y - ymax) · log2 e. The best one's is exactly 0 and no token's
// is above it, whatever the size of the logits. ymax is finite.
ISOBIT_HD float relative_log2(float y, float ymax) { return fmul(fsub(y, ymax), kLog2E); }

// floor(2^44 · 2^t), t = relative_log2(y, ymax): 2^44 for the best, 0 from t < -44 on. A -infinity logit has no mass.
ISOBIT_HD uint64_t mass(float y, float ymax) {
  const uint32_t u = bits(ex2(relative_log2(y, ymax)));
  const int shift = static_cast<int>(u >> 23) - 127 - 23 + kMassBits;  // at most 21; ex2 is never negative or subnormal
  const uint64_t significand = (u & 0x7fffff) | 0x800000;
  if (u == 0 || shift <= -24) return 0;
  return shift >= 0 ? significand << shift : significand >> -shift;
}

// ln of the probability of a logit y: (y - ymax) - ln(Z · 2^-44), Z = Σ mass (at least 2^44), in double, rounded once
// to f32. Never above 0; exactly 0 where one token has all the mass.
ISOBIT_HD float log_probability(float y, float ymax, uint64_t z) {
  static_assert(kMassBits == 44);
  const double log_sum = ln(dmul(static_cast<double>(z), 0x1p-44));
  return static_cast<float>(dadd(dadd(static_cast<double>(y), -static_cast<double>(ymax)), -log_sum));
}

}  // namespace isobit::numerics
