// N21's FP8 cache: what is written, that reading is exact, and attention over it against float64.
#include "numerics/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;

TEST(KvCache, EveryStoredByteWidensExactlyAndComesBack) {
  for (int i = 0; i < 256; i++) {
    const auto e = static_cast<uint8_t>(i);
    if ((e & 0x7f) == 0x7f) continue;  // NaN is never stored
    const float x = e4m3_to_f32(e);
    EXPECT_EQ(bits(bf16_to_f32(cached_bf16(e))), bits(x)) << i;
    EXPECT_EQ(bits(f16_to_f32(cached_f16(e))), bits(x)) << i;
    bool finite = true;
    EXPECT_EQ(cache_e4m3(x, 1.0f, finite), e);
    EXPECT_EQ(cache_e4m3(fmul(x, 0.25f), 0.25f, finite), e);
    EXPECT_TRUE(finite);
  }
}

TEST(KvCache, NothingButNumbersIsStored) {
  Random random;
  SCOPED_TRACE(random.note());
  int flagged = 0, saturated = 0;
  for (int i = 0; i < 200000; i++) {
    const float x = from_bits(static_cast<uint32_t>(random.bits()));
    const float scale = from_bits(static_cast<uint32_t>(random.bits()) & 0x7fffffff);
    if (!(scale > 0.0f) || !std::isfinite(scale)) continue;
    bool finite = true;
    const uint8_t e = cache_e4m3(x, scale, finite);
    ASSERT_NE(e & 0x7f, 0x7f);
    ASSERT_EQ(finite, std::isfinite(x));
    ASSERT_TRUE(finite || e == 0);
    flagged += finite ? 0 : 1;
    if (finite && std::fabs(x) / scale >= 448.0f) {
      saturated++;
      ASSERT_EQ(e & 0x7f, 0x7e);
      ASSERT_EQ((e & 0x80) != 0, std::signbit(x));
    }
  }
  EXPECT_GT(flagged, 0);
  EXPECT_GT(saturated, 0);
}

// Attention over stored numbers whose scales join the rule's constants, against softmax over the values in float64.
TEST(KvCache, ScalesJoinTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  constexpr int kDim = 32;
  for (int round = 0; round < 20; round++) {
    const int64_t n = 1 + random.below(300);
    const float k_scale = 0.01f + 0.1f * static_cast<float>(random.below(10)), v_scale = 0.003f + k_scale / 7;
    const float cap = round % 2 == 0 ? 0.0f : 20.0f, scale = 0.2f;
    std::vector<uint16_t> q(kDim), k, v, out(kDim);
    for (uint16_t& x : q) x = f32_to_bf16(random.normal());
    bool finite = true;
    for (int64_t i = 0; i < n * kDim; i++) {
      k.push_back(cached_bf16(cache_e4m3(random.normal(), k_scale, finite)));
      v.push_back(cached_bf16(cache_e4m3(random.normal(), v_scale, finite)));
    }
    attention_row<Operand::kBF16>(
        q.data(), kDim, n, [&](int64_t j) { return k.data() + j * kDim; },
        [&](int64_t j) { return v.data() + j * kDim; }, [](int64_t) { return true; },
        scale_of_cached(scale, cap, k_scale, v_scale), nullptr, out.data());
    std::vector<double> sum(kDim, 0.0);
    double mass = 0.0;
    const auto widened = [](uint16_t x) { return static_cast<double>(bf16_to_f32(x)); };
    for (int64_t j = 0; j < n; j++) {
      double s = 0.0;
      for (int d = 0; d < kDim; d++)
        s += widened(q[static_cast<size_t>(d)]) * widened(k[static_cast<size_t>(j * kDim + d)]);
      s *= static_cast<double>(scale) * static_cast<double>(k_scale);
      if (cap > 0.0f) s = static_cast<double>(cap) * std::tanh(s / static_cast<double>(cap));
      const double p = std::exp(s);
      mass += p;
      for (int d = 0; d < kDim; d++) {
        sum[static_cast<size_t>(d)] += p * widened(v[static_cast<size_t>(j * kDim + d)]) * static_cast<double>(v_scale);
      }
    }
    for (size_t d = 0; d < kDim; d++) EXPECT_NEAR(widened(out[d]), sum[d] / mass, 0.02) << d;
  }
}

}  // namespace
}  // namespace isobit::numerics
