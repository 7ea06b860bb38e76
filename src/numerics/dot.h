#pragma once
// N3. dot16 and N4. dot32: one step of Hopper's tensor core, exactly. c + Σ a_i·b_i, where every product and c are cut
// (toward zero) to one quantum set by the largest exponent, added exactly, and the sum is cut to f32.
//   dot16: 16 products of bf16 or f16, quantum 2^(emax-25), result f32 toward zero (24 bits).
//   dot32: 32 products of e4m3 (wgmma only), quantum 2^(emax-13), result cut to 14 bits.
// The exponent of a product is the sum of its operands' exponents; the product of the mantissas is not normalised
// first. emax is over the non-zero products and a non-zero c, and at least -133.
#include "numerics/convert.h"

namespace isobit::numerics {

enum class Operand { kBF16, kF16, kE4M3 };

namespace detail {

enum class Class : uint8_t { kFinite, kInf, kNaN };

struct Decoded {  // value = mantissa · 2^(exponent - mantissa bits); sign in the mantissa (±1 for an infinity)
  int64_t mantissa;
  int exponent;
  Class cls;
};

template <Operand kind>
ISOBIT_HD Decoded decode(uint32_t u) {
  constexpr int m = kind == Operand::kBF16 ? 7 : kind == Operand::kF16 ? 10 : 3;
  constexpr int e = kind == Operand::kBF16 ? 8 : kind == Operand::kF16 ? 5 : 4;
  constexpr int bias = (1 << (e - 1)) - 1;
  const int64_t sign = ((u >> (m + e)) & 1) != 0 ? -1 : 1;
  const int exponent = static_cast<int>((u >> m) & ((1u << e) - 1));
  const int64_t mantissa = u & ((1u << m) - 1);
  if (kind == Operand::kE4M3) {
    if (exponent == 15 && mantissa == 7) return {1, 0, Class::kNaN};
  } else if (exponent == (1 << e) - 1) {
    return {sign, 0, mantissa != 0 ? Class::kNaN : Class::kInf};
  }
  if (exponent == 0) return {sign * mantissa, 1 - bias, Class::kFinite};
  return {sign * (mantissa | (1 << m)), exponent - bias, Class::kFinite};
}

ISOBIT_HD Decoded decode_f32(float c) {
  const uint32_t u = bits(c);
  const int64_t sign = (u >> 31) != 0 ? -1 : 1;
  const int exponent = static_cast<int>((u >> 23) & 255);
  const int64_t mantissa = u & 0x7fffff;
  if (exponent == 255) return {sign, 0, mantissa != 0 ? Class::kNaN : Class::kInf};
  if (exponent == 0) return {sign * mantissa, -126, Class::kFinite};
  return {sign * (mantissa | 0x800000), exponent - 127, Class::kFinite};
}

// x · 2^-shift, the magnitude cut toward zero.
ISOBIT_HD int64_t shift_toward_zero(int64_t x, int shift) {
  if (shift <= 0) return x * (int64_t{1} << -shift);
  if (shift > 62) return 0;
  return x >= 0 ? x >> shift : -((-x) >> shift);
}

// sum · 2^quantum as f32: the magnitude cut to `keep` bits, infinity above the range, subnormals kept, zero is +0.
ISOBIT_HD float to_f32_toward_zero(int64_t sum, int quantum, int keep) {
  if (sum == 0) return 0.0f;
  const uint32_t sign = sum < 0 ? 0x80000000u : 0;
  uint64_t a = sum < 0 ? static_cast<uint64_t>(-sum) : static_cast<uint64_t>(sum);
  int n = 0;  // bits of a
  while (n < 64 && (a >> n) != 0) n++;
  if (n > keep) a = a >> (n - keep) << (n - keep);
  const int exponent = n - 1 + quantum;
  if (exponent > 127) return from_bits(sign | kInf32);
  if (exponent < -126) {
    const int shift = -149 - quantum;
    if (shift > 63) return from_bits(sign);
    return from_bits(sign | static_cast<uint32_t>(shift > 0 ? a >> shift : a << -shift));
  }
  const uint64_t mantissa = n > 24 ? a >> (n - 24) : a << (24 - n);
  return from_bits(sign | (static_cast<uint32_t>(exponent + 127) << 23) | (static_cast<uint32_t>(mantissa) & 0x7fffff));
}

template <Operand kind, int count, typename T>
ISOBIT_HD float dot_step(float c, const T* a, const T* b, int stride_b) {
  constexpr int m = kind == Operand::kBF16 ? 7 : kind == Operand::kF16 ? 10 : 3;
  constexpr int fraction = kind == Operand::kE4M3 ? 13 : 25;
  constexpr int keep = kind == Operand::kE4M3 ? 14 : 24;
  constexpr int none = -100000;
  int emax = none;
  bool nan = false, plus_inf = false, minus_inf = false;
  for (int i = 0; i < count; i++) {
    const Decoded x = decode<kind>(a[i]), y = decode<kind>(b[i * stride_b]);
    if (x.cls == Class::kNaN || y.cls == Class::kNaN) {
      nan = true;
    } else if (x.cls == Class::kInf || y.cls == Class::kInf) {
      if (x.mantissa == 0 || y.mantissa == 0) {
        nan = true;
      } else {
        ((x.mantissa > 0) == (y.mantissa > 0) ? plus_inf : minus_inf) = true;
      }
    } else if (x.mantissa != 0 && y.mantissa != 0) {
      emax = emax > x.exponent + y.exponent ? emax : x.exponent + y.exponent;
    }
  }
  const Decoded z = decode_f32(c);
  if (z.cls == Class::kNaN) nan = true;
  if (z.cls == Class::kInf) (z.mantissa > 0 ? plus_inf : minus_inf) = true;
  if (z.cls == Class::kFinite && z.mantissa != 0) emax = emax > z.exponent ? emax : z.exponent;
  if (nan || (plus_inf && minus_inf)) return from_bits(kNaN32);
  if (plus_inf) return from_bits(kInf32);
  if (minus_inf) return from_bits(0x80000000u | kInf32);
  if (emax == none) return 0.0f;
  if (emax < -133) emax = -133;
  const int quantum = emax - fraction;
  int64_t sum = 0;
  for (int i = 0; i < count; i++) {
    const Decoded x = decode<kind>(a[i]), y = decode<kind>(b[i * stride_b]);
    const int64_t product = x.mantissa * y.mantissa;
    if (product != 0) sum += shift_toward_zero(product, quantum - (x.exponent + y.exponent - 2 * m));
  }
  if (z.mantissa != 0) sum += shift_toward_zero(z.mantissa, quantum - (z.exponent - 23));
  return to_f32_toward_zero(sum, quantum, keep);
}

}  // namespace detail

// N3. a[16], b[16·stride_b]: bits of bf16 or f16.
template <Operand kind = Operand::kBF16>
ISOBIT_HD float dot16(float c, const uint16_t* a, const uint16_t* b, int stride_b = 1) {
  static_assert(kind != Operand::kE4M3);
  return detail::dot_step<kind, 16>(c, a, b, stride_b);
}

// N4. a[32], b[32]: bits of e4m3.
ISOBIT_HD float dot32(float c, const uint8_t* a, const uint8_t* b) {
  return detail::dot_step<Operand::kE4M3, 32>(c, a, b, 1);
}

}  // namespace isobit::numerics
