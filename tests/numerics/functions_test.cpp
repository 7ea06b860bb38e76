// N5 ex2, N6 the f64 functions, N11 activations.
#include <cmath>

#include "numerics/activation.h"
#include "numerics/ex2.h"
#include "numerics/f64.h"
#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;

// |x - y| in units of the last place of y.
double ulps(double x, long double y) {
  const double rounded = static_cast<double>(y);
  const double unit = std::nextafter(std::fabs(rounded), INFINITY) - std::fabs(rounded);
  return static_cast<double>(std::fabs(static_cast<long double>(x) - y) / static_cast<long double>(unit));
}

TEST(Ex2, PowersAreExactAndNeighboursNear) {
  for (int n = -126; n <= 127; n++) ASSERT_EQ(ex2(static_cast<float>(n)), std::ldexp(1.0f, n)) << n;
  Random random;
  SCOPED_TRACE(random.note());
  double worst = 0;
  for (int i = 0; i < 500000; i++) {
    const float x = static_cast<float>(random.between(-126, 128));
    const long double exact = std::exp2(static_cast<long double>(x));
    if (exact < 0x1p-126L || exact >= 0x1p128L) continue;
    const double error = static_cast<double>(std::fabs(static_cast<long double>(ex2(x)) - exact) / exact);
    worst = std::max(worst, error);
  }
  // Two parts: the polynomial's error and, for large |x|, the cut of the argument to 23 fraction bits.
  EXPECT_LT(worst, 0x1p-22 + 0x1p-23);
  EXPECT_GT(worst, 0x1p-25);  // the comparison did compare
}

TEST(Ex2, Edges) {
  EXPECT_EQ(bits(ex2(from_bits(0xffc00001))), kNaN32);
  EXPECT_EQ(bits(ex2(from_bits(kInf32))), kInf32);
  EXPECT_EQ(bits(ex2(from_bits(0xff800000))), 0u);
  EXPECT_EQ(ex2(0.0f), 1.0f);
  EXPECT_EQ(ex2(-0.0f), 1.0f);
  EXPECT_EQ(ex2(from_bits(1)), 1.0f);
  EXPECT_EQ(ex2(from_bits(0x807fffff)), 1.0f);
  EXPECT_EQ(bits(ex2(128.0f)), kInf32);
  EXPECT_EQ(bits(ex2(from_bits(0x42ffffff))), 0x7f7fffa8u);
  EXPECT_EQ(bits(ex2(-126.0f)), 0x00800000u);
  EXPECT_EQ(bits(ex2(from_bits(0xc2fc0001))), 0u);  // just under -126: below the normal range
}

TEST(F64, LogarithmWithinFourUnits) {
  Random random;
  SCOPED_TRACE(random.note());
  double worst = 0;
  const auto check = [&](double x) { worst = std::max(worst, ulps(ln(x), std::log(static_cast<long double>(x)))); };
  for (int i = 0; i < 300000; i++) {
    check(from_bits64(random.bits() % 0x7fe0000000000000ULL + 0x0010000000000000ULL));
    check(random.between(0.5, 2));
    check(1 + std::ldexp(random.between(-1, 1), -random.below(50)));
  }
  EXPECT_LT(worst, 4.0);
  RecordProperty("worst_ulps", std::to_string(worst));
  EXPECT_EQ(bits64(ln(1.0)), 0u);
  EXPECT_EQ(ln(2.0), kLn2);
}

TEST(F64, ExponentialWithinTwoUnits) {
  Random random;
  SCOPED_TRACE(random.note());
  double worst = 0;
  for (int i = 0; i < 300000; i++) {
    const double x = random.between(-700, 700) * (i % 3 == 0 ? 1e-3 : 1);
    worst = std::max(worst, ulps(exp(x), std::exp(static_cast<long double>(x))));
  }
  EXPECT_LT(worst, 2.0);
  RecordProperty("worst_ulps", std::to_string(worst));
  EXPECT_EQ(exp(0.0), 1.0);
  EXPECT_EQ(exp(-0.0), 1.0);
}

TEST(F64, SineAndCosineWithinTwoUnits) {
  Random random;
  SCOPED_TRACE(random.note());
  double worst = 0;
  for (int i = 0; i < 300000; i++) {
    // 64-bit long double reduces an argument exactly enough up to here; the rule's own domain is 2^30.
    const double x = i % 2 == 0 ? random.between(-4, 4) : random.between(-0x1p20, 0x1p20);
    const SinCos a = sin_cos(x);
    worst = std::max(worst, ulps(a.sin, std::sin(static_cast<long double>(x))));
    worst = std::max(worst, ulps(a.cos, std::cos(static_cast<long double>(x))));
  }
  EXPECT_LT(worst, 2.0);
  RecordProperty("worst_ulps", std::to_string(worst));
  for (int i = 0; i < 100000; i++) {  // to the edge of the domain, in what f32 keeps of it
    const double x = random.between(-0x1p30, 0x1p30);
    const SinCos a = sin_cos(x);
    ASSERT_NEAR(a.sin, static_cast<double>(std::sin(static_cast<long double>(x))), 1e-15) << x;
    ASSERT_NEAR(a.cos, static_cast<double>(std::cos(static_cast<long double>(x))), 1e-15) << x;
  }
  EXPECT_EQ(bits64(sin_cos(0).sin), 0u);
  EXPECT_EQ(sin_cos(0).cos, 1.0);
}

TEST(F64, RoundEvenTakesTiesToEven) {
  for (const auto& [x, y] : {std::pair{0.5, 0.0}, {1.5, 2.0}, {2.5, 2.0}, {-0.5, 0.0}, {-1.5, -2.0}, {7.49, 7.0}}) {
    EXPECT_EQ(round_even(x), y) << x;
  }
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 100000; i++) {
    const double x = random.between(-0x1p51, 0x1p51) * std::ldexp(1.0, -random.below(52));
    ASSERT_EQ(round_even(x), std::nearbyint(x)) << x;
  }
}

TEST(Activation, NearTheFunctionsTheyAreNamedAfter) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 200000; i++) {
    const float x = static_cast<float>(random.between(-30, 30)) * (i % 2 == 0 ? 1.0f : 0.05f);
    const double d = x;
    ASSERT_NEAR(silu(x), d / (1 + std::exp(-d)), 4e-6 * std::fabs(d) + 1e-12) << x;
    ASSERT_NEAR(numerics::tanh(x), std::tanh(d), 3e-7) << x;
    const double gelu = 0.5 * d * (1 + std::tanh(std::sqrt(2 / M_PI) * (d + 0.044715 * d * d * d)));
    ASSERT_NEAR(gelu_tanh(x), gelu, 4e-7 * std::fabs(d) + 1e-12) << x;
  }
}

TEST(Activation, Edges) {
  const float inf = from_bits(kInf32);
  EXPECT_EQ(bits(silu(0.0f)), 0u);
  EXPECT_EQ(bits(silu(-0.0f)), 0x80000000u);
  EXPECT_EQ(bits(silu(-1000.0f)), 0x80000000u);
  EXPECT_EQ(bits(silu(inf)), kInf32);
  EXPECT_TRUE(is_nan(silu(-inf)));
  EXPECT_EQ(numerics::tanh(inf), 1.0f);
  EXPECT_EQ(numerics::tanh(-inf), -1.0f);
  EXPECT_EQ(bits(numerics::tanh(0.0f)), 0u);
  EXPECT_EQ(bits(numerics::tanh(-0.0f)), 0u);
  EXPECT_EQ(bits(gelu_tanh(inf)), kInf32);
  EXPECT_TRUE(is_nan(gelu_tanh(-inf)));
  EXPECT_EQ(bits(gelu_tanh(-1e30f)), 0x80000000u);
  EXPECT_TRUE(is_nan(silu(from_bits(kNaN32))));
}

}  // namespace
}  // namespace isobit::numerics
