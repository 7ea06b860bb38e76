// The scalar target's step against rule N3, by bytes.
#include "ops/cpu/dot16_usual.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "numerics/testing.h"

namespace isobit::cpu {
namespace {

using testing::Random;

// Exponents around one that is drawn, now and then a zero; or any bits at all.
struct Operands {
  Random& random;
  int spread = 1 + random.below(24), center = random.below(256);
  bool full = random.below(6) == 0, any = random.below(6) == 0;

  uint16_t draw() const {
    if (any) return static_cast<uint16_t>(random.bits32());
    if (random.below(12) == 0) return static_cast<uint16_t>(random.below(2) << 15);
    const int exponent = std::clamp(center + random.below(spread) - spread / 2, 0, 255);
    const int mantissa = full ? 127 : random.below(128);
    return static_cast<uint16_t>(random.below(2) << 15 | exponent << 7 | mantissa);
  }
};

TEST(Dot16Usual, IsTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  int finite = 0;
  for (int n = 0; n < testing::cases(300000); n++) {
    const Operands left{random}, right{random, 1 + random.below(24), 254 - left.center + random.below(60) - 30};
    uint16_t a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = left.draw(), b[i] = right.draw();
    uint32_t old = random.bits32();
    if (random.below(4) == 0) old &= 0x80000000;
    const int top = left.center + right.center - 127 + random.below(40) - 20;  // near the products' exponent
    if (random.below(2) == 0) old = (old & 0x807fffff) | static_cast<uint32_t>(std::clamp(top, 0, 255)) << 23;
    const float c = numerics::from_bits(old), want = numerics::dot16(c, a, b);
    ASSERT_EQ(numerics::bits(dot16_usual(c, a, b)), numerics::bits(want)) << "case " << n;
    finite += want != 0.0f && want - want == 0.0f ? 1 : 0;
  }
  EXPECT_GT(finite, testing::cases(300000) / 4) << "most operands should be such as models have";
}

// Operands all as large as bf16 allows: the sum of quanta is the largest there is.
TEST(Dot16Usual, FullSums) {
  for (const uint16_t sign : {uint16_t{0}, uint16_t{0x8000}}) {
    uint16_t a[16], b[16];
    std::fill_n(a, 16, static_cast<uint16_t>(0x3fff | sign));
    std::fill_n(b, 16, uint16_t{0x3fff});
    for (const uint32_t c : {0x00000000u, 0x407fffffu, 0xc07fffffu, 0x4b7fffffu}) {
      const float old = numerics::from_bits(c);
      EXPECT_EQ(numerics::bits(dot16_usual(old, a, b)), numerics::bits(numerics::dot16(old, a, b)));
    }
  }
}

}  // namespace
}  // namespace isobit::cpu
