#pragma once
// N2. Conversions between f32 and the storage formats: round to nearest, ties to even. NaN becomes the one NaN of the
// format. bf16 and f16 overflow to infinity, e4m3 saturates. Storage formats are carried as their bits.
#include "numerics/ieee.h"

namespace isobit::numerics {

ISOBIT_HD float bf16_to_f32(uint16_t h) { return from_bits(static_cast<uint32_t>(h) << 16); }

ISOBIT_HD uint16_t f32_to_bf16(float x) {
  const uint32_t u = bits(x);
  if (is_nan(x)) return kNaN16;
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

ISOBIT_HD float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return from_bits(mantissa != 0 ? kNaN32 : sign | kInf32);
  if (exponent != 0) return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  return from_bits(sign | bits(fmul(static_cast<float>(mantissa), from_bits(103u << 23))));  // mantissa · 2^-24, exact
}

ISOBIT_HD uint16_t f32_to_f16(float x) {
  if (is_nan(x)) return kNaN16;
  const uint32_t u = bits(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // at least 65520: rounds to infinity
  if (a >= 0x38800000) {                                             // at least 2^-14: a normal f16
    const uint32_t r = a + 0xfff + ((a >> 13) & 1);
    return static_cast<uint16_t>(sign | ((r - 0x38000000) >> 13));
  }
  // Subnormal: adding 0.5 puts the quantum 2^-24 at the last bit of the sum, which then rounds to nearest even.
  const float sum = fadd(from_bits(a), 0.5f);
  return static_cast<uint16_t>(sign | (bits(sum) - 0x3f000000));
}

ISOBIT_HD float e4m3_to_f32(uint8_t e) {
  const uint32_t sign = static_cast<uint32_t>(e & 0x80) << 24, exponent = (e >> 3) & 15, mantissa = e & 7;
  if ((e & 0x7f) == 0x7f) return from_bits(kNaN32);
  if (exponent != 0) return from_bits(sign | ((exponent + 120) << 23) | (mantissa << 20));
  return from_bits(sign | bits(fmul(static_cast<float>(mantissa), from_bits(118u << 23))));  // mantissa · 2^-9, exact
}

// Saturates at ±448, infinity included; NaN becomes 0x7f.
ISOBIT_HD uint8_t f32_to_e4m3(float x) {
  if (is_nan(x)) return 0x7f;
  const uint32_t u = bits(x), sign = (u >> 24) & 0x80, a = u & 0x7fffffff;
  if (a >= 0x43e00000) return static_cast<uint8_t>(sign | 0x7e);  // at least 448
  if (a >= 0x3c800000) {                                          // at least 2^-6: a normal e4m3
    const uint32_t r = a + 0x7ffff + ((a >> 20) & 1);
    return static_cast<uint8_t>(sign | ((r - 0x3c000000) >> 20));
  }
  const float sum = fadd(from_bits(a), 16384.0f);  // its last bit is 2^-9, the quantum of subnormals
  return static_cast<uint8_t>(sign | (bits(sum) - 0x46800000));
}

}  // namespace isobit::numerics
