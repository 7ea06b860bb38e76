#pragma once
// N8. RMSNorm. The sum of squares has 1024 lanes: element i goes to lane i mod 1024 by a = fma(x, x, a), i ascending;
// then neighbours are added in a binary tree: for h = 1, 2, …, 512, a_j += a_{j+h} for j ≡ 0 mod 2h. Empty lanes are
// +0.
#include "numerics/contract.h"
#include "numerics/convert.h"

namespace isobit::numerics {

ISOBIT_HD float sum_of_squares(const float* x, int64_t n) {
  float lane[kSumLanes];
  for (int j = 0; j < kSumLanes; j++) lane[j] = 0.0f;
  for (int64_t i = 0; i < n; i++) lane[i % kSumLanes] = ffma(x[i], x[i], lane[i % kSumLanes]);
  for (int h = 1; h < kSumLanes; h *= 2) {
    for (int j = 0; j < kSumLanes; j += 2 * h) lane[j] = fadd(lane[j], lane[j + h]);
  }
  return lane[0];
}

// 1 / sqrt(sum / n + eps), every operation rounded.
ISOBIT_HD float rms_scale(float sum, int64_t n, float eps) {
  return fdiv(1.0f, fsqrt(fadd(fdiv(sum, static_cast<float>(n)), eps)));
}

// The normalised value before it is rounded to the activation type: (x · scale) · weight.
ISOBIT_HD float rms_value(float x, float scale, float weight) { return fmul(fmul(x, scale), weight); }

}  // namespace isobit::numerics
