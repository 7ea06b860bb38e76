#include "numerics/dot.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "contract_vectors.h"
#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;
namespace v = isobit::vectors;

// The rule again, written in floating point: every product is exact in double, cutting is trunc(), the sum of at most
// 33 integers below 2^28 is exact.
struct Term {
  double value;
  int exponent;
};

Term stored(Operand kind, uint32_t u) {
  const double x = static_cast<double>(v::operand_value(kind, u));
  const int lowest = kind == Operand::kBF16 ? -126 : kind == Operand::kF16 ? -14 : -6;
  return {x, x == 0 || !std::isfinite(x) ? lowest : std::max(std::ilogb(x), lowest)};
}

float reference(Operand kind, float c, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  const bool e4m3 = kind == Operand::kE4M3;
  double special = 0;  // the sum in IEEE terms, to see infinities and NaN
  std::vector<Term> terms;
  for (size_t i = 0; i < a.size(); i++) {
    const Term x = stored(kind, a[i]), y = stored(kind, b[i]);
    const double p = x.value * y.value;
    if (!std::isfinite(p)) special += p;
    if (std::isfinite(p) && p != 0) terms.push_back({p, x.exponent + y.exponent});
  }
  if (!std::isfinite(c)) special += static_cast<double>(c);
  if (std::isnan(special)) return from_bits(kNaN32);
  if (std::isinf(special)) return static_cast<float>(special);
  if (c != 0) terms.push_back({static_cast<double>(c), std::max(std::ilogb(c), -126)});
  if (terms.empty()) return 0;
  int emax = -133;
  for (const Term& t : terms) emax = std::max(emax, t.exponent);
  const int quantum = emax - (e4m3 ? 13 : 25);
  double sum = 0;
  for (const Term& t : terms) sum += std::trunc(std::ldexp(t.value, -quantum));
  if (sum == 0) return 0;
  const int digits = e4m3 ? 14 : 24, top = std::ilogb(sum);
  if (top >= digits) sum = std::ldexp(std::trunc(std::ldexp(sum, digits - 1 - top)), top - digits + 1);
  if (top + quantum > 127) return sum < 0 ? -INFINITY : INFINITY;
  // f32's own quantum
  const int last = std::max(top + quantum - 23, -149);
  return static_cast<float>(std::ldexp(std::trunc(std::ldexp(sum, quantum - last)), last));
}

float scalar(Operand kind, float c, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  if (kind == Operand::kE4M3) {
    const std::vector<uint8_t> x(a.begin(), a.end()), y(b.begin(), b.end());
    return dot32(c, x.data(), y.data());
  }
  const std::vector<uint16_t> x(a.begin(), a.end()), y(b.begin(), b.end());
  return kind == Operand::kBF16 ? dot16<Operand::kBF16>(c, x.data(), y.data())
                                : dot16<Operand::kF16>(c, x.data(), y.data());
}

struct Case {
  float c;
  std::vector<uint32_t> a, b;
};
Case make(Operand kind, int cls, uint64_t seed, int row, int column) {
  Case r{from_bits(v::accumulator(kind, cls, seed, row, column)), {}, {}};
  for (int k = 0; k < (kind == Operand::kE4M3 ? 32 : 16); k++) {
    r.a.push_back(v::operand(kind, cls, seed, v::kA, row, 0, k));
    r.b.push_back(v::operand(kind, cls, seed, v::kB, column, 0, k));
  }
  return r;
}

constexpr Operand kKinds[] = {Operand::kBF16, Operand::kF16, Operand::kE4M3};

TEST(Dot, EqualsTheSameRuleInFloatingPoint) {
  Random random;
  SCOPED_TRACE(random.note());
  for (const Operand kind : kKinds) {
    for (int cls = 0; cls < v::kClasses; cls++) {
      for (int i = 0; i < 4000; i++) {
        const Case r = make(kind, cls, random.bits(), i % 64, i % 8);
        const float x = scalar(kind, r.c, r.a, r.b), y = reference(kind, r.c, r.a, r.b);
        ASSERT_EQ(bits(x), bits(y)) << "kind " << static_cast<int>(kind) << ", " << v::class_name(cls);
      }
    }
  }
}

// N3: inside a step there is no order, and a zero product is as good as none.
TEST(Dot, OrderAndZeroProductsDoNotMatter) {
  Random random;
  SCOPED_TRACE(random.note());
  for (const Operand kind : kKinds) {
    for (int i = 0; i < 3000; i++) {
      const int cls = random.below(v::kClasses);
      Case r = make(kind, cls, random.bits(), i % 64, i % 8);
      const uint32_t before = bits(scalar(kind, r.c, r.a, r.b));
      std::vector<size_t> order(r.a.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::shuffle(order.begin(), order.end(), std::mt19937_64(random.bits()));
      Case s = r;
      for (size_t k = 0; k < order.size(); k++) s.a[k] = r.a[order[k]], s.b[k] = r.b[order[k]];
      ASSERT_EQ(bits(scalar(kind, s.c, s.a, s.b)), before) << v::class_name(cls);
      std::swap(s.a, s.b);
      ASSERT_EQ(bits(scalar(kind, s.c, s.a, s.b)), before) << "operands swapped, " << v::class_name(cls);
      // A zero operand makes its partner irrelevant, unless that is NaN or infinite.
      for (size_t k = 0; k < r.a.size(); k += 3) r.a[k] = 0;
      Case t = r;
      for (size_t k = 0; k < r.a.size(); k += 3) {
        const float other = v::operand_value(kind, r.b[k]);
        if (std::isfinite(other)) t.b[k] = random.below(2) == 0 ? 0 : t.b[(k + 1) % t.b.size()];
        if (!std::isfinite(v::operand_value(kind, t.b[k]))) t.b[k] = r.b[k];
      }
      ASSERT_EQ(bits(scalar(kind, t.c, t.a, t.b)), bits(scalar(kind, r.c, r.a, r.b))) << v::class_name(cls);
    }
  }
}

// What makes a zero-filled tail of K, a wholly masked block and an early end of a chain the same thing: a step of zero
// products keeps what a step gave.
TEST(Dot, AStepOfZeroProductsKeepsAnyResultOfAStep) {
  Random random;
  SCOPED_TRACE(random.note());
  for (const Operand kind : kKinds) {
    for (int i = 0; i < 5000; i++) {
      const Case r = make(kind, random.below(v::kClasses), random.bits(), i % 64, i % 8);
      const float x = scalar(kind, r.c, r.a, r.b);
      const std::vector<uint32_t> zero(r.a.size(), 0);
      ASSERT_EQ(bits(scalar(kind, x, zero, zero)), bits(x));
      const Case finite = make(kind, v::kHuge, random.bits(), i % 64, i % 8);
      ASSERT_EQ(bits(scalar(kind, x, zero, finite.b)), bits(x));
    }
  }
  // dot16 keeps every f32 but -0 and the payload of a NaN; dot32 cuts one that no dot32 gave to 14 bits.
  const std::vector<uint32_t> zero16(16, 0), zero32(32, 0);
  for (int i = 0; i < 200000; i++) {
    const float c = from_bits(random.bits32());
    const uint32_t expected = bits(c == 0 ? 0.0f : canonical(c));
    ASSERT_EQ(bits(scalar(Operand::kBF16, c, zero16, zero16)), expected);
    ASSERT_EQ(bits(scalar(Operand::kF16, c, zero16, zero16)), expected);
    if (std::isnormal(c)) {
      ASSERT_EQ(bits(scalar(Operand::kE4M3, c, zero32, zero32)), bits(c) & 0xfffffc00u);
    }
  }
}

TEST(Dot, Edges) {
  const auto step = [](float c, std::initializer_list<uint32_t> a, std::initializer_list<uint32_t> b) {
    std::vector<uint32_t> x(a), y(b);
    x.resize(16, 0), y.resize(16, 0);
    return bits(scalar(Operand::kBF16, c, x, y));
  };
  constexpr uint32_t one = 0x3f80, minus_one = 0xbf80, inf = 0x7f80, minus_inf = 0xff80, nan = 0x7fc1;
  EXPECT_EQ(step(-0.0f, {0x8000}, {one}), 0u);                     // no zero but +0
  EXPECT_EQ(step(1.0f, {one}, {minus_one}), 0u);                   // exact cancellation
  EXPECT_EQ(step(0.0f, {inf}, {0}), kNaN32);                       // infinity times zero
  EXPECT_EQ(step(0.0f, {inf, inf}, {one, minus_one}), kNaN32);     // infinities of both signs
  EXPECT_EQ(step(0.0f, {minus_inf}, {one}), 0xff800000u);          //
  EXPECT_EQ(step(from_bits(kInf32), {minus_inf}, {one}), kNaN32);  //
  EXPECT_EQ(step(1.0f, {nan}, {0}), kNaN32);                       // a NaN counts even times zero
  EXPECT_EQ(step(from_bits(0xffc12345), {one}, {one}), kNaN32);    //
  EXPECT_EQ(step(0.0f, {0x7f7f}, {0x7f7f}), kInf32);               // overflow, though the rounding is toward zero
  EXPECT_EQ(step(0x1.fffffep127f, {one}, {one}), bits(0x1.fffffep127f));  // 1 is below the quantum
  EXPECT_EQ(step(1.0f, {one}, {0x3280}), bits(1.0f));                     // 2^-26 is cut before the sum
  EXPECT_EQ(step(1.0f, {one, one}, {0x3300, 0x3300}), bits(1.0f));        // 2 · 2^-25 counts, but the result is cut
  EXPECT_EQ(step(1.0f, {one, one, one, one}, {0x3300, 0x3300, 0x3300, 0x3300}), bits(1.0f) + 1);
  EXPECT_EQ(step(0.0f, {0x0001}, {one}), 0x00010000u);  // a subnormal operand counts
}

}  // namespace
}  // namespace isobit::numerics
