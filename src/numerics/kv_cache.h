#pragma once
// N21. What the cache stores of a key or value, and what attention makes of an FP8 cache: e4m3 is exact in bf16 and in
// f16, so that N10 works on the stored numbers, and the scales join it where it multiplies by a constant anyway.
#include "numerics/attention.h"
#include "numerics/quantize.h"

namespace isobit::numerics {

// An element for an FP8 cache whose head has this scale, of 2^-64 to 2^64: the nearest e4m3 of x / scale, saturated.
// `finite` is cleared where x is not finite; such an element is stored as +0.
ISOBIT_HD uint8_t cache_e4m3(float x, float scale, bool& finite) {
  if ((bits(x) & kInf32) != kInf32) return e4m3_value(x, scale);
  finite = false;
  return 0;
}

// A stored element as attention's operand, without its scale: exact.
ISOBIT_HD uint16_t cached_bf16(uint8_t e) { return f32_to_bf16(e4m3_to_f32(e)); }
ISOBIT_HD uint16_t cached_f16(uint8_t e) { return f32_to_f16(e4m3_to_f32(e)); }

// N10's constants over a cache with these scales (1 and 1 without any).
ISOBIT_HD AttentionScale scale_of_cached(float scale, float soft_cap, float k_scale, float v_scale) {
  return {fmul(scale, k_scale), soft_cap, v_scale};
}

}  // namespace isobit::numerics
