#pragma once
// N23. The weighted sum of what a token's experts gave.
#include "numerics/contract.h"
#include "numerics/ieee.h"

namespace isobit::numerics {

// One slot more: acc begins at +0, slots ascend.
ISOBIT_HD float combine_slot(float acc, float weight, float value) { return ffma(weight, value, acc); }

// value[top]: of one column, widened to f32.
ISOBIT_HD float combine(const float* weight, const float* value, int64_t top) {
  float acc = 0.0f;
  for (int64_t s = 0; s < top; s++) acc = combine_slot(acc, weight[s], value[s]);
  return acc;
}

}  // namespace isobit::numerics
