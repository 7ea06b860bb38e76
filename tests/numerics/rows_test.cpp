// N7 GEMM, N8 RMSNorm, N9 RoPE, N16 block-scaled FP8 GEMM, N18 activation quantisation.
#include <cmath>
#include <vector>

#include "numerics/gemm.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "numerics/rope.h"
#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;

std::vector<uint16_t> random_bf16(Random& r, int64_t n) {
  std::vector<uint16_t> x(static_cast<size_t>(n));
  for (auto& e : x) e = f32_to_bf16(r.normal() * std::ldexp(1.0f, r.below(6) - 3));
  return x;
}
std::vector<uint8_t> random_e4m3(Random& r, int64_t n) {
  std::vector<uint8_t> x(static_cast<size_t>(n));
  for (auto& e : x) e = f32_to_e4m3(r.normal(20.0f));
  return x;
}
template <typename T>
std::vector<T> padded(std::vector<T> x, int64_t n) {
  x.resize(static_cast<size_t>(n), T{0});
  return x;
}

// The chain spelt out on operands padded to a whole number of steps.
float chain(const std::vector<uint16_t>& x, const std::vector<uint16_t>& w, int64_t from, int64_t to) {
  float c = 0;
  for (int64_t i = from; i < to; i += 16) c = dot16(c, x.data() + i, w.data() + i);
  return c;
}

TEST(Gemm, AnyLengthIsOneChainOfAPaddedRow) {
  Random random;
  SCOPED_TRACE(random.note());
  for (const int64_t k : {1, 15, 16, 17, 100, 576, 2047, 2048, 2049, 4096, 5000}) {
    const auto x = random_bf16(random, k), w = random_bf16(random, k);
    const auto px = padded(x, 8192), pw = padded(w, 8192);
    EXPECT_EQ(bits(gemm_dot(x.data(), w.data(), k, gemm_chunk_k(4096, k))), bits(chain(px, pw, 0, (k + 15) / 16 * 16)));
    EXPECT_EQ(bits(gemm_dot(x.data(), w.data(), k, k)), bits(chain(px, pw, 0, 8192))) << "zeros to any length";
    double exact = 0, size = 0;
    for (size_t i = 0; i < x.size(); i++) {
      const double p = static_cast<double>(bf16_to_f32(x[i])) * static_cast<double>(bf16_to_f32(w[i]));
      exact += p, size += std::fabs(p);
    }
    EXPECT_NEAR(gemm_dot(x.data(), w.data(), k, k), exact, size * 0x1p-23 * static_cast<double>(k / 16 + 2));
  }
}

TEST(Gemm, NarrowMatricesTakeChunksAddedInOrder) {
  EXPECT_EQ(gemm_chunk_k(1024, 2048), 2048);
  EXPECT_EQ(gemm_chunk_k(1024, 2049), 2048);
  EXPECT_EQ(gemm_chunk_k(1025, 8192), 8192);
  EXPECT_EQ(gemm_chunk_k(1, 576), 576);
  Random random;
  SCOPED_TRACE(random.note());
  int differ = 0;
  for (int i = 0; i < 20; i++) {
    const int64_t k = 4096 + random.below(3000);
    const auto x = random_bf16(random, k), w = random_bf16(random, k);
    const auto px = padded(x, 8192), pw = padded(w, 8192);
    float expected = 0;
    for (int64_t start = 0; start < k; start += 2048) {
      const float c = chain(px, pw, start, start + 2048);
      expected = start == 0 ? c : fadd(expected, c);
    }
    EXPECT_EQ(bits(gemm_dot(x.data(), w.data(), k, 2048)), bits(expected));
    differ += bits(expected) != bits(gemm_dot(x.data(), w.data(), k, k)) ? 1 : 0;
  }
  EXPECT_GT(differ, 0);  // the chunks are part of the rule, not a detail
}

TEST(Gemm, BlockScaledFp8) {
  Random random;
  SCOPED_TRACE(random.note());
  for (const int64_t k : {1, 32, 100, 128, 129, 384, 1000, 2048}) {
    const int64_t blocks = (k + 127) / 128;
    const auto x = random_e4m3(random, k), w = random_e4m3(random, k);
    const auto px = padded(x, blocks * 128), pw = padded(w, blocks * 128);
    std::vector<float> sx, sw;
    for (int64_t b = 0; b < blocks; b++) {
      sx.push_back(std::fabs(random.normal(0.01f))), sw.push_back(std::fabs(random.normal(0.01f)));
    }
    float expected = 0;
    double exact = 0, size = 0;
    for (int64_t b = 0; b < blocks; b++) {
      float p = 0;
      for (int64_t i = 0; i < 128; i += 32) p = dot32(p, px.data() + b * 128 + i, pw.data() + b * 128 + i);
      const auto at = static_cast<size_t>(b);
      expected = std::fma(p, sx[at] * sw[at], expected);
      for (int64_t i = b * 128; i < b * 128 + 128; i++) {
        const double e = static_cast<double>(e4m3_to_f32(px[static_cast<size_t>(i)])) *
                         static_cast<double>(e4m3_to_f32(pw[static_cast<size_t>(i)])) * static_cast<double>(sx[at]) *
                         static_cast<double>(sw[at]);
        exact += e, size += std::fabs(e);
      }
    }
    const float got = gemm_fp8_dot(x.data(), w.data(), sx.data(), sw.data(), k);
    EXPECT_EQ(bits(got), bits(expected)) << k;
    EXPECT_NEAR(got, exact, size * 4 * 0x1p-12) << k;
  }
}

TEST(Norm, TheTreeOverLanes) {
  Random random;
  SCOPED_TRACE(random.note());
  for (const int64_t n : {1, 2, 576, 1023, 1024, 1025, 3000, 8192}) {
    std::vector<float> x(static_cast<size_t>(n));
    for (auto& e : x) e = random.normal(3.0f);
    // Lanes as columns, the tree as halving of a shrinking list of neighbours.
    std::vector<float> level(1024, 0.0f);
    for (size_t i = 0; i < x.size(); i++) level[i % 1024] = std::fma(x[i], x[i], level[i % 1024]);
    while (level.size() > 1) {
      std::vector<float> next;
      for (size_t i = 0; i < level.size(); i += 2) next.push_back(fadd(level[i], level[i + 1]));
      level = next;
    }
    const float sum = sum_of_squares(x.data(), n);
    EXPECT_EQ(bits(sum), bits(level[0])) << n;
    double exact = 0;
    for (const float e : x) exact += static_cast<double>(e) * static_cast<double>(e);
    EXPECT_NEAR(sum, exact, exact * 0x1p-21) << n;
    const double scale = 1 / std::sqrt(exact / static_cast<double>(n) + 1e-5);
    EXPECT_NEAR(rms_scale(sum, n, 1e-5f), scale, scale * 0x1p-20) << n;
    EXPECT_EQ(bits(rms_value(x[0], 0.7f, 1.3f)), bits(fmul(fmul(x[0], 0.7f), 1.3f)));
  }
  const std::vector<float> zeros(100, -0.0f);
  EXPECT_EQ(bits(sum_of_squares(zeros.data(), 100)), 0u);
  EXPECT_EQ(bits(rms_scale(0.0f, 100, 0.0f)), kInf32);
  EXPECT_TRUE(is_nan(rms_value(0.0f, from_bits(kInf32), 1.0f)));
}

TEST(Rope, AnglesAndRotation) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 100000; i++) {
    const int dim = 32 << random.below(4), pair = random.below(dim / 2);
    const double theta = random.below(2) == 0 ? 10000.0 : 500000.0;
    const int64_t position = random.below(i % 2 == 0 ? 4096 : 1 << 20);
    const long double exact =
        std::pow(static_cast<long double>(theta), -2.0L * pair / dim) * static_cast<long double>(position);
    const double f = rope_frequency(pair, dim, theta);
    ASSERT_NEAR(f, static_cast<double>(std::pow(static_cast<long double>(theta), -2.0L * pair / dim)), f * 1e-14);
    const RopeEntry e = rope_entry(position, f, 1.0);
    const double slack = 0x1p-24 + static_cast<double>(position) * 1e-14;  // f32, and the angle in double
    ASSERT_NEAR(e.cos, static_cast<double>(std::cos(exact)), slack);
    ASSERT_NEAR(e.sin, static_cast<double>(std::sin(exact)), slack);
    const float x = random.normal(), y = random.normal();
    const Rotated r = rope_rotate(x, y, e);
    ASSERT_EQ(bits(r.x0), bits(std::fma(x, e.cos, -fmul(y, e.sin))));
    ASSERT_EQ(bits(r.x1), bits(std::fma(y, e.cos, fmul(x, e.sin))));
  }
  EXPECT_EQ(rope_frequency(0, 64, 10000.0), 1.0);
  const RopeEntry none = rope_entry(0, 0.5, 1.0);
  EXPECT_EQ(none.cos, 1.0f);
  EXPECT_EQ(bits(none.sin), 0u);
  const Rotated kept = rope_rotate(1.5f, -2.5f, none);
  EXPECT_EQ(kept.x0, 1.5f);
  EXPECT_EQ(kept.x1, -2.5f);
}

TEST(Quantize, ScaleAndValue) {
  EXPECT_EQ(e4m3_scale(448.0f), 1.0f);
  EXPECT_EQ(bits(e4m3_scale(0.0f)), bits(fdiv(1e-8f, 448.0f)));
  EXPECT_EQ(bits(e4m3_scale(from_bits(kNaN32))), bits(fdiv(1e-8f, 448.0f)));
  EXPECT_EQ(e4m3_value(0.0f, e4m3_scale(0.0f)), 0);
  EXPECT_EQ(e4m3_value(from_bits(kNaN32), 1.0f), 0x7f);
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 100000; i++) {
    const float amax = std::fabs(random.normal(std::ldexp(1.0f, random.below(40) - 20)));
    const float s = e4m3_scale(amax);
    ASSERT_EQ(e4m3_value(amax, s), amax >= 1e-8f ? 0x7e : e4m3_value(amax, s));
    const float x = amax * static_cast<float>(random.between(-1, 1));
    const double back = static_cast<double>(e4m3_to_f32(e4m3_value(x, s))) * static_cast<double>(s);
    ASSERT_NEAR(back, x, std::fabs(static_cast<double>(x)) / 16 + static_cast<double>(s) * 0x1p-10);
  }
}

}  // namespace
}  // namespace isobit::numerics
