// N12 to N15 and N17.
#include "numerics/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "numerics/philox.h"
#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;

TEST(Philox, PublishedVectors) {  // Random123's kat_vectors, philox4x32 with 7 and 10 rounds
  struct Known {
    int rounds;
    uint64_t key;
    PhiloxWords counter, expected;
  };
  constexpr uint32_t ones = 0xffffffffu;
  constexpr uint64_t pi_key = 0x299f31d0a4093822u;
  constexpr PhiloxWords zero{{0, 0, 0, 0}}, full{{ones, ones, ones, ones}},
      pi{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
  for (const Known& k : {Known{7, 0, zero, {{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}}},
                         Known{7, ~0ull, full, {{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}}},
                         Known{7, pi_key, pi, {{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}}},
                         Known{10, 0, zero, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
                         Known{10, ~0ull, full, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
                         Known{10, pi_key, pi, {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}}}) {
    const PhiloxWords got = philox4x32(k.key, k.counter, k.rounds);
    for (int i = 0; i < 4; i++) EXPECT_EQ(got.w[i], k.expected.w[i]) << k.rounds << " rounds, word " << i;
  }
  EXPECT_EQ(philox4x32(pi_key, pi).w[2], 0xc47362bau);  // 7 is the contract's number
}

TEST(Noise, OneCallServesFourIds) {
  const uint64_t seed = 0x123456789abcdef0;
  const PhiloxWords w = philox4x32(seed, {{25, 7, 0, 3}});
  for (uint32_t i = 0; i < 4; i++) EXPECT_EQ(noise_bits(seed, 100 + i, 7, NoisePurpose::kSample, 3), w.w[i]);
  EXPECT_NE(noise_bits(seed, 100, 7, NoisePurpose::kDraft, 3), w.w[0]);
}

TEST(Noise, GumbelReachAndShape) {
  EXPECT_NEAR(gumbel(0), 22.874, 0.0005);
  EXPECT_NEAR(gumbel(0xffffffffu), -3.130, 0.0005);
  EXPECT_GT(gumbel(0), gumbel(1));
  Random random;
  SCOPED_TRACE(random.note());
  double sum = 0, squares = 0;
  constexpr int n = 400000;
  for (int i = 0; i < n; i++) {
    const uint32_t r = noise_bits(77, static_cast<uint32_t>(i), 5, NoisePurpose::kSample, 0);
    const double g = gumbel(r);
    const long double x = 1 - (static_cast<long double>(r) + 0.5L) / 0x1p32L;
    ASSERT_NEAR(g, static_cast<double>(-std::log(-std::log(x))), 1e-14);
    sum += g, squares += g * g;
  }
  const double mean = sum / n;
  EXPECT_NEAR(mean, 0.5772157, 0.01);  // Euler's constant; σ of the mean is 0.002
  EXPECT_NEAR(squares / n - mean * mean, M_PI * M_PI / 6, 0.03);
}

// The winner of logit + noise is drawn with the softmax's probabilities.
TEST(Noise, WinnersFollowTheProbabilities) {
  const std::vector<float> z = {1.0f, 0.0f, 2.0f, -1.0f, 0.5f};
  std::vector<int> wins(z.size());
  constexpr int n = 50000;
  for (uint32_t position = 0; position < n; position++) {
    size_t best = 0;
    double best_score = -INFINITY;
    for (size_t i = 0; i < z.size(); i++) {
      const double s =
          gumbel_score(z[i], noise_bits(4242, static_cast<uint32_t>(i), position, NoisePurpose::kSample, 0));
      if (s > best_score) best = i, best_score = s;
    }
    wins[best]++;
  }
  double total = 0;
  for (const float e : z) total += std::exp(static_cast<double>(e));
  for (size_t i = 0; i < z.size(); i++) {
    const double p = std::exp(static_cast<double>(z[i])) / total;
    EXPECT_NEAR(static_cast<double>(wins[i]) / n, p, 5 * std::sqrt(p * (1 - p) / n)) << i;
  }
}

TEST(Mass, IsTheFloorOfTheScaledPower) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 300000; i++) {
    const float ymax = random.normal(20.0f), y = ymax - static_cast<float>(random.between(0, i % 2 == 0 ? 35 : 3));
    const double power = static_cast<double>(ex2(fmul(fsub(y, ymax), kLog2E)));
    ASSERT_EQ(mass(y, ymax), static_cast<uint64_t>(std::floor(std::ldexp(power, 44)))) << y << " " << ymax;
    ASSERT_NEAR(static_cast<double>(mass(y, ymax)) * 0x1p-44,
                std::exp(static_cast<double>(y) - static_cast<double>(ymax)), 3e-6);
  }
}

TEST(Mass, TheBestHasExactlyOneWhateverItsSize) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 300000; i++) {
    float ymax = from_bits(random.bits32()), y = from_bits(random.bits32());
    if (!std::isfinite(ymax) || std::isnan(y)) continue;
    ASSERT_EQ(mass(ymax, ymax), uint64_t{1} << 44);
    if (y > ymax) continue;
    ASSERT_LE(mass(y, ymax), uint64_t{1} << 44);
  }
  EXPECT_EQ(mass(from_bits(0xff800000), 3.0f), 0u);
  EXPECT_EQ(mass(-3e38f, 3e38f), 0u);
  EXPECT_EQ(mass(-0.0f, 0.0f), uint64_t{1} << 44);
  EXPECT_EQ(mass(from_bits(bits(-44.0f / kLog2E) - 1), 0.0f), 1u);  // 2^t just over 2^-44
  EXPECT_EQ(mass(-40.0f, 0.0f), 0u);
}

TEST(LogProbability, EqualsFloat64WithinAnF32Rounding) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 200; i++) {
    std::vector<float> y(1 + static_cast<size_t>(random.below(500)));
    for (float& e : y) e = random.normal(5.0f);
    const float ymax = *std::max_element(y.begin(), y.end());
    uint64_t z = 0;
    long double exact = 0;
    for (const float e : y) {
      z += mass(e, ymax);
      exact += std::exp(static_cast<long double>(e) - static_cast<long double>(ymax));
    }
    for (const float e : y) {
      const float got = log_probability(e, ymax, z);
      const double expected =
          static_cast<double>(static_cast<long double>(e) - static_cast<long double>(ymax) - std::log(exact));
      ASSERT_NEAR(got, expected, 1e-6 + std::fabs(expected) * 0x1p-23);
      ASSERT_LE(got, 0.0f);
    }
  }
  EXPECT_EQ(bits(log_probability(7.5f, 7.5f, uint64_t{1} << 44)), 0u);  // alone: certain
  EXPECT_EQ(log_probability(from_bits(0xff800000), 1.0f, uint64_t{1} << 44), -INFINITY);
  EXPECT_EQ(log_probability(0, 0, uint64_t{1} << 45), static_cast<float>(-std::log(2.0)));
}

__extension__ using Wide = unsigned __int128;

TEST(Filters, TopPComparesIn128Bits) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 500000; i++) {
    const uint64_t before = random.bits() >> random.below(64), total = random.bits() >> random.below(64);
    uint64_t threshold = random.bits() >> random.below(64);
    if (i % 2 == 0) threshold = top_p_threshold(static_cast<float>(random.between(0, 0.9999)));
    const auto left = static_cast<Wide>(before) << 32;
    const auto right = static_cast<Wide>(threshold) * total;
    ASSERT_EQ(top_p_keeps(before, threshold, total), left < right) << before << " " << threshold << " " << total;
  }
  // At equality and one unit around it.
  EXPECT_FALSE(top_p_keeps(1ull << 43, top_p_threshold(0.5f), 1ull << 44));
  EXPECT_TRUE(top_p_keeps((1ull << 43) - 1, top_p_threshold(0.5f), 1ull << 44));
  EXPECT_FALSE(top_p_keeps((1ull << 43) + 1, top_p_threshold(0.5f), 1ull << 44));
}

TEST(Filters, ThresholdsKeepTheBest) {
  EXPECT_EQ(top_p_threshold(0.5f), 1ull << 31);
  EXPECT_EQ(top_p_threshold(0x1p-33f), 1u);  // 0.5 goes to even, 0, and is lifted
  EXPECT_EQ(top_p_threshold(1e-30f), 1u);
  EXPECT_EQ(top_p_threshold(0x1.8p-32f), 2u);
  EXPECT_EQ(top_p_threshold(from_bits(bits(1.0f) - 1)), 0xffffff00u);
  EXPECT_TRUE(top_p_keeps(0, top_p_threshold(1e-30f), 1ull << 44));
  EXPECT_EQ(min_p_threshold(0.5f), -1.0f);
  EXPECT_LT(min_p_threshold(from_bits(bits(1.0f) - 1)), 0.0f);
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 100000; i++) {
    const float zmax = from_bits(random.bits32());
    const float p = static_cast<float>(random.between(1e-6, 1));
    if (!std::isfinite(zmax) || p >= 1) continue;
    ASSERT_TRUE(min_p_keeps(zmax, zmax, min_p_threshold(p)));
    const float z = random.normal(3.0f);
    const double ratio = std::exp(static_cast<double>(z) - 10);
    if (std::fabs(ratio / static_cast<double>(p) - 1) < 1e-5) continue;
    ASSERT_EQ(min_p_keeps(z, 10.0f, min_p_threshold(p)), ratio >= static_cast<double>(p)) << z << " " << p;
  }
}

TEST(Filters, KeysOrderAsNumbersThenIds) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 300000; i++) {
    const float a = from_bits(random.bits32()), b = from_bits(random.bits32());
    if (std::isnan(a) || std::isnan(b)) continue;
    ASSERT_EQ(order_key(a) < order_key(b), a < b) << a << " " << b;
    ASSERT_EQ(candidate_key(a, 5) > candidate_key(b, 9), a >= b);
    ASSERT_GT(candidate_key(a, 5), candidate_key(a, 9));
  }
  EXPECT_EQ(order_key(-0.0f), order_key(0.0f));
  EXPECT_GT(order_key(from_bits(1)), order_key(0.0f));
  EXPECT_LT(order_key(from_bits(0x80000001)), order_key(0.0f));
}

TEST(Logits, BiasThenPenaltiesThenTemperature) {
  const Penalties none, all{1.5f, 0.25f, 0.5f};
  EXPECT_EQ(bits(process_logit(-0.0f, 0, none, true, 3, 1)), 0x80000000u);  // untouched
  EXPECT_EQ(process_logit(3.0f, 0, all, true, 0, 1), 2.0f);
  EXPECT_EQ(process_logit(-3.0f, 0, all, true, 0, 1), -4.5f);
  EXPECT_EQ(process_logit(-3.0f, 0, all, false, 0, 1), -3.0f);
  EXPECT_EQ(process_logit(3.0f, 0, all, true, 2, 1), 2.0f - 1.0f - 0.25f);
  EXPECT_EQ(process_logit(-1.0f, 4.0f, all, true, 0, 1), 2.0f);  // the bias decides the sign that the penalty sees
  EXPECT_EQ(process_logit(3.0f, 0, all, true, 2, 2.0f), 1.5f);
  const float ban = from_bits(0xff800000);
  EXPECT_EQ(process_logit(ban, 1.0f, all, true, 2, 2.0f), ban);
  EXPECT_EQ(process_logit(1.0f, ban, all, true, 2, 2.0f), ban);
}

}  // namespace
}  // namespace isobit::numerics
