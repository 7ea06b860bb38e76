// N25. Stretched rotary frequencies.
#include "numerics/rope_scaling.h"

#include <cmath>
#include <numbers>

#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;

constexpr double kTiny = 1e-13;  // ln and exp are within a few units of the last place

TEST(RopeScaling, Llama3KeepsShortWavesAndStretchesLongOnes) {
  constexpr double kFactor = 8, kLow = 1, kHigh = 4, kOriginal = 8192;
  const auto scaled = [&](double turns) {
    const double f = turns * 2 * std::numbers::pi / kOriginal;
    return rope_llama3(f, kFactor, kLow, kHigh, kOriginal) / f;
  };
  EXPECT_EQ(scaled(4.001), 1.0);
  EXPECT_EQ(scaled(0.999), 1.0 / kFactor);
  EXPECT_NEAR(scaled(2.5), (0.5 / kFactor) + 0.5, kTiny);  // half way between
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 1000; i++) {  // and nowhere does it jump
    const double turns = random.between(0.5, 5), smooth = std::clamp((turns - kLow) / (kHigh - kLow), 0.0, 1.0);
    EXPECT_NEAR(scaled(turns), (1 - smooth) / kFactor + smooth, kTiny) << turns;
  }
}

TEST(RopeScaling, YarnGoesFromOneToTheOther) {
  constexpr int kDim = 64;
  constexpr double kTheta = 10000, kOriginal = 4096, kFactor = 16;
  const auto index = [&](double turns) {
    return kDim * std::log(kOriginal / (turns * 2 * std::numbers::pi)) / (2 * std::log(kTheta));
  };
  const YarnRange whole = yarn_range(32, 1, kDim, kTheta, kOriginal, true),
                  exact = yarn_range(32, 1, kDim, kTheta, kOriginal, false);
  EXPECT_EQ(whole.low, std::floor(index(32)));
  EXPECT_EQ(whole.high, std::ceil(index(1)));
  EXPECT_NEAR(exact.low, index(32), kTiny * 100);
  EXPECT_NEAR(exact.high, index(1), kTiny * 100);
  for (int i = 0; i < kDim / 2; i++) {
    const double f = rope_frequency(i, kDim, kTheta);
    const double ramp = std::clamp((i - whole.low) / (whole.high - whole.low), 0.0, 1.0);
    EXPECT_NEAR(rope_yarn(f, i, kFactor, whole) / f, ramp / kFactor + 1 - ramp, kTiny);
  }
}

TEST(RopeScaling, YarnsRangeIsClipped) {
  const YarnRange met = yarn_range(4, 4, 64, 10000, 4096, false);
  EXPECT_EQ(met.high, dadd(met.low, 0.001));  // both ends meet: not a division by zero
  const YarnRange wide = yarn_range(1e9, 1e-9, 64, 10000, 4096, true);
  EXPECT_EQ(wide.low, 0.0);
  EXPECT_EQ(wide.high, 63.0);
}

TEST(RopeScaling, WholeBelowIsFloor) {
  for (const double x : {-2.5, -2.0, -1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 2.5, 1e9 + 0.5})
    EXPECT_EQ(whole_below(x), std::floor(x));
}

TEST(RopeScaling, Magnitudes) {
  EXPECT_EQ(yarn_magnitude(1.0, 1.0), 1.0);
  EXPECT_NEAR(yarn_magnitude(32.0, 1.0), 0.1 * std::log(32.0) + 1, kTiny);
  EXPECT_EQ(long_magnitude(1.0, 4096.0), 1.0);
  EXPECT_NEAR(long_magnitude(32.0, 4096.0), std::sqrt(1 + std::log(32.0) / std::log(4096.0)), kTiny);
}

}  // namespace
}  // namespace isobit::numerics
