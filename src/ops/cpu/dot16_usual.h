#pragma once
// N3 on bf16 without vectors, in a quarter of the time of numerics::dot16, which does what is not covered here.
#include <algorithm>
#include <bit>
#include <cstdint>

#include "numerics/dot.h"

namespace isobit::cpu {

// A product of two bf16 is exact in f32, and so is its multiple by 2^(25-E), E the largest exponent of products and c;
// the conversion to int32 cuts it to quanta. Covered: operands and c that are zero or normal, E from -60 to 80. Then no
// scale leaves f32's range, a product that is rounded as a subnormal is far below a quantum, and the result is normal.
// Each product is under 2^27 quanta: eight of them, and c, which is under 2^26, stay inside int32.
inline float dot16_usual(float c, const uint16_t* a, const uint16_t* b) {
  constexpr int kBias = 127, kLowest = 2 * kBias - 60, kHighest = 2 * kBias + 80;  // of E, twice biased as products are
  const auto unusual = [](int magnitude) {                                         // subnormal; infinite or NaN
    return static_cast<int>(static_cast<uint32_t>(magnitude - 1) < 0x7f) | static_cast<int>(magnitude >= 0x7f80);
  };
  int largest = 0, odd = 0;
  for (int i = 0; i < 16; i++) {
    const int x = a[i] & 0x7fff, y = b[i] & 0x7fff;
    largest = std::max(largest, x == 0 || y == 0 ? 0 : (x >> 7) + (y >> 7));
    odd |= unusual(x) | unusual(y);
  }
  const uint32_t old = numerics::bits(c) & 0x7fffffff;
  if (old != 0) largest = std::max(largest, static_cast<int>(old >> 23) + kBias);
  odd |= static_cast<int>(old - 1 < 0x7fffff) | static_cast<int>(old >= numerics::kInf32);
  if (largest == 0 && odd == 0) return 0.0f;
  if (odd != 0 || largest < kLowest || largest > kHighest) return numerics::dot16(c, a, b);

  const int up_exponent = 2 * kBias + 25 - largest;  // 25 - E
  const float up = numerics::from_bits(static_cast<uint32_t>(kBias + up_exponent) << 23);
  const auto half = [&](int from) {
    int32_t sum = 0;
    for (int i = from; i < from + 8; i++) {
      const float x = numerics::from_bits(uint32_t{a[i]} << 16), y = numerics::from_bits(uint32_t{b[i]} << 16);
      sum += static_cast<int32_t>(x * y * up);
    }
    return int64_t{sum};
  };
  const int64_t sum = half(0) + half(8) + static_cast<int32_t>(c * up);
  // Exact as a double, whose mantissa is cut to f32's 24 bits.
  const uint64_t cut = std::bit_cast<uint64_t>(static_cast<double>(sum)) >> 29 << 29;
  const double down = std::bit_cast<double>(static_cast<uint64_t>(1023 - up_exponent) << 52);
  return static_cast<float>(std::bit_cast<double>(cut) * down);
}

}  // namespace isobit::cpu
