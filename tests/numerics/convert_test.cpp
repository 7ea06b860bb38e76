#include "numerics/convert.h"

#include <cmath>
#include <limits>

#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;

// A storage format by its definition, in double arithmetic that shares nothing with the code under test.
struct Format {
  int mantissa, exponent;
  bool infinities;  // e4m3 has none: its top exponent holds numbers, but for one NaN
  int bias() const { return (1 << (exponent - 1)) - 1; }
  uint32_t sign_bit() const { return 1u << (mantissa + exponent); }

  double decode(uint32_t u) const {
    const int e = static_cast<int>(u >> mantissa) & ((1 << exponent) - 1);
    const int m = static_cast<int>(u & ((1u << mantissa) - 1));
    const double sign = (u & sign_bit()) != 0 ? -1 : 1;
    const bool top = e == (1 << exponent) - 1;
    if (infinities && top) return m != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    if (!infinities && top && m == (1 << mantissa) - 1) return std::nan("");
    return sign *
           (e == 0 ? std::ldexp(m, 1 - bias() - mantissa) : std::ldexp(m + (1 << mantissa), e - bias() - mantissa));
  }
  double largest() const {
    const uint32_t top = sign_bit() - 1;  // all ones but the sign
    return decode(infinities ? top - (1u << mantissa) : top - 1);
  }
  // Nearest, ties to even, by counting quanta.
  uint32_t encode(double x) const {
    const uint32_t sign = std::signbit(x) ? sign_bit() : 0;
    if (std::isnan(x)) return sign_bit() - 1;
    const double a = std::fabs(x);
    int e = 0;
    if (a > 0) std::frexp(a, &e);
    if (a == 0 || e - 1 < 1 - bias()) e = 2 - bias();
    const uint32_t infinity = ((1u << exponent) - 1) << mantissa;
    if (std::isinf(a)) return sign | (infinities ? infinity : sign_bit() - 2);
    const double n = std::nearbyint(std::ldexp(a, mantissa + 1 - e)), value = std::ldexp(n, e - 1 - mantissa);
    if (value > largest()) return sign | (infinities ? infinity : sign_bit() - 2);
    // The encodings are in the order of the values, so the mantissa's count places it.
    return sign | static_cast<uint32_t>(n + std::ldexp(e - 2 + bias(), mantissa));
  }
};

constexpr Format kBF16{7, 8, true}, kF16{10, 5, true}, kE4M3{3, 4, false};

uint32_t encode(const Format& f, float x) {
  if (f.mantissa == 7) return f32_to_bf16(x);
  return f.mantissa == 10 ? f32_to_f16(x) : f32_to_e4m3(x);
}
float decode(const Format& f, uint32_t u) {
  if (f.mantissa == 7) return bf16_to_f32(static_cast<uint16_t>(u));
  return f.mantissa == 10 ? f16_to_f32(static_cast<uint16_t>(u)) : e4m3_to_f32(static_cast<uint8_t>(u));
}

void check(const Format& f, float x) {
  ASSERT_EQ(encode(f, x), f.encode(static_cast<double>(x)))
      << std::hexfloat << x << " bits " << std::hex << bits(x) << " mantissa bits " << f.mantissa;
}

TEST(Convert, EveryStoredValueWidensAndReturns) {
  for (const Format& f : {kBF16, kF16, kE4M3}) {
    for (uint32_t u = 0; u < 2 * f.sign_bit(); u++) {
      const float x = decode(f, u);
      const double expected = f.decode(u);
      if (std::isnan(expected)) {
        ASSERT_TRUE(is_nan(x)) << u;
        ASSERT_EQ(encode(f, x), f.sign_bit() - 1) << u;
        continue;
      }
      ASSERT_EQ(static_cast<double>(x), expected) << u;
      ASSERT_EQ(std::signbit(x), std::signbit(expected)) << u;
      ASSERT_EQ(encode(f, x), u);
    }
  }
}

// The neighbourhood of every stored value and of every midpoint between two: where rounding is decided.
TEST(Convert, NarrowingAroundEveryValueAndEveryTie) {
  for (const Format& f : {kBF16, kF16, kE4M3}) {
    for (uint32_t u = 0; u < f.sign_bit(); u++) {
      const double here = f.decode(u), next = f.decode(u + 1);
      if (std::isnan(here) || std::isinf(here)) continue;
      const double above = std::isfinite(next) ? next : here + (here - f.decode(u - 1));  // where infinity begins
      for (const double centre : {here, (here + above) / 2}) {
        const float x = static_cast<float>(centre);
        for (int step = -2; step <= 2; step++) {
          if (bits(x) == 0 && step < 0) continue;
          const float y = from_bits(bits(x) + static_cast<uint32_t>(step));
          check(f, y);
          check(f, -y);
        }
      }
    }
  }
}

TEST(Convert, NarrowingOfAnyBits) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 2000000; i++) {
    const uint32_t u = random.bits32();
    for (const Format& f : {kBF16, kF16, kE4M3}) check(f, from_bits(u));
    // exponents where f16 and e4m3 are neither zero nor full
    for (const Format& f : {kF16, kE4M3}) check(f, from_bits((u & 0x83ffffff) | 0x38000000 | (u >> 2 & 0x04000000)));
  }
}

TEST(Convert, Edges) {
  EXPECT_EQ(f32_to_bf16(from_bits(0x7f7fffff)), 0x7f80);  // the largest f32 is nearer to 2^128
  EXPECT_EQ(f32_to_bf16(from_bits(0x7f7f7fff)), 0x7f7f);
  EXPECT_EQ(f32_to_bf16(from_bits(0xff800001)), kNaN16);  // a NaN has no sign
  EXPECT_EQ(f32_to_bf16(from_bits(1)), 0);                // a subnormal below the tie
  EXPECT_EQ(f32_to_bf16(from_bits(0x8000)), 0);           // the tie goes to even
  EXPECT_EQ(f32_to_bf16(from_bits(0x8001)), 1);
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-65520.0f), 0xfc00);
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0);
  EXPECT_EQ(f32_to_f16(0x1.000002p-25f), 1);
  EXPECT_EQ(f32_to_e4m3(432.0f), 0x7e);  // a tie between 416 (0x7d) and 448 (0x7e)
  EXPECT_EQ(f32_to_e4m3(from_bits(bits(432.0f) - 1)), 0x7d);
  EXPECT_EQ(f32_to_e4m3(464.0f), 0x7e);
  EXPECT_EQ(f32_to_e4m3(1e30f), 0x7e);
  EXPECT_EQ(f32_to_e4m3(from_bits(0xff800000)), 0xfe);
  EXPECT_EQ(f32_to_e4m3(from_bits(0xffc00000)), 0x7f);
  EXPECT_EQ(f32_to_e4m3(-0.0f), 0x80);
  EXPECT_EQ(f32_to_e4m3(0x1p-10f), 0);
  EXPECT_EQ(f32_to_e4m3(0x1.8p-9f), 2);  // 1.5 quanta
}

TEST(Ieee, MaximumTakesNumbersAndPlusZero) {
  const float nan = from_bits(kNaN32);
  EXPECT_EQ(bits(fmax(nan, -1.0f)), bits(-1.0f));
  EXPECT_EQ(bits(fmax(-1.0f, nan)), bits(-1.0f));
  EXPECT_TRUE(is_nan(fmax(nan, nan)));
  EXPECT_EQ(bits(fmax(-0.0f, 0.0f)), 0u);
  EXPECT_EQ(bits(fmax(0.0f, -0.0f)), 0u);
  EXPECT_EQ(bits(fmax(-0.0f, -0.0f)), 0x80000000u);
  EXPECT_EQ(fmax(1.0f, 2.0f), 2.0f);
  EXPECT_EQ(bits(canonical(from_bits(0xff812345))), kNaN32);
}

// Single operations against the same in double or long double, where those have digits enough to round twice safely.
TEST(Ieee, OperationsRoundToNearestOnce) {
  Random random;
  SCOPED_TRACE(random.note());
  ASSERT_TRUE(environment_is_ieee());
  for (int i = 0; i < 300000; i++) {
    const float a = from_bits(random.bits32()), b = from_bits(random.bits32()), c = from_bits(random.bits32());
    if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c)) continue;
    const double da = a, db = b;
    ASSERT_EQ(bits(canonical(fadd(a, b))), bits(canonical(static_cast<float>(da + db))));
    ASSERT_EQ(bits(canonical(fsub(a, b))), bits(canonical(static_cast<float>(da - db))));
    ASSERT_EQ(bits(canonical(fmul(a, b))), bits(canonical(static_cast<float>(da * db))));
    ASSERT_EQ(bits(canonical(fdiv(a, b))), bits(canonical(static_cast<float>(da / db))));
    ASSERT_EQ(bits(canonical(fsqrt(a))), bits(canonical(static_cast<float>(std::sqrt(da)))));
    // The product is exact in double; an FMA that is not rounded once differs from mul and add where they cancel.
    const float product = fmul(a, b), rest = ffma(a, b, -product);
    if (std::isfinite(product) && std::fabs(product) > 1e-30f) {
      ASSERT_EQ(static_cast<double>(rest), da * db - static_cast<double>(product));
    }
  }
}

}  // namespace
}  // namespace isobit::numerics
