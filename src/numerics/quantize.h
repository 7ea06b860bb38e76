#pragma once
// N18. Activation quantisation to e4m3 over 128 values.
#include "numerics/convert.h"

namespace isobit::numerics {

// max(amax, 1e-8) / 448
ISOBIT_HD float e4m3_scale(float amax) { return fdiv(fmax(amax, 1e-8f), 448.0f); }
ISOBIT_HD uint8_t e4m3_value(float x, float scale) { return f32_to_e4m3(fdiv(x, scale)); }

}  // namespace isobit::numerics
