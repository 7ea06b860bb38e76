// N10, against float64 softmax attention within a tolerance, and against its own invariances bit for bit.
#include "numerics/attention.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "testing.h"

namespace isobit::numerics {
namespace {

using isobit::testing::Random;
using Mask = std::function<bool(int64_t)>;

struct Problem {
  int dim;
  int64_t n;
  std::vector<uint16_t> q, k, v;
  AttentionScale scale;
  const float* sink = nullptr;

  const uint16_t* key(int64_t j) const { return k.data() + j * dim; }
  const uint16_t* value(int64_t j) const { return v.data() + j * dim; }
  std::vector<uint16_t> run(const Mask& allowed, int64_t positions = -1) const {
    std::vector<uint16_t> out(static_cast<size_t>(dim), 0xdead);
    attention_row<Operand::kBF16>(
        q.data(), dim, positions < 0 ? n : positions, [&](int64_t j) { return key(j); },
        [&](int64_t j) { return value(j); }, allowed, scale, sink, out.data());
    return out;
  }
};

Problem make(Random& r, int dim, int64_t n, float query_size = 1.0f) {
  Problem p{dim, n, {}, {}, {}, {1 / std::sqrt(static_cast<float>(dim)), 0.0f}, nullptr};
  for (int d = 0; d < dim; d++) p.q.push_back(f32_to_bf16(r.normal(query_size)));
  for (int64_t i = 0; i < n * dim; i++) {
    p.k.push_back(f32_to_bf16(r.normal()));
    p.v.push_back(f32_to_bf16(r.normal()));
  }
  return p;
}

std::vector<double> exact(const Problem& p, const Mask& allowed) {
  std::vector<double> score(static_cast<size_t>(p.n), -INFINITY), out(static_cast<size_t>(p.dim), 0);
  double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < p.n; j++) {
    if (!allowed(j)) continue;
    double s = 0;
    for (int d = 0; d < p.dim; d++) {
      s +=
          static_cast<double>(bf16_to_f32(p.q[static_cast<size_t>(d)])) * static_cast<double>(bf16_to_f32(p.key(j)[d]));
    }
    s *= static_cast<double>(p.scale.scale);
    const double cap = static_cast<double>(p.scale.soft_cap);
    if (cap > 0) s = cap * std::tanh(s / cap);
    score[static_cast<size_t>(j)] = s;
    largest = std::max(largest, s);
  }
  if (p.sink != nullptr) largest = std::max(largest, static_cast<double>(*p.sink));
  for (int64_t j = 0; j < p.n; j++) {
    const double e = std::exp(score[static_cast<size_t>(j)] - largest);
    sum += e;
    for (int d = 0; d < p.dim; d++) {
      out[static_cast<size_t>(d)] += e * static_cast<double>(bf16_to_f32(p.value(j)[d]));
    }
  }
  if (p.sink != nullptr) sum += std::exp(static_cast<double>(*p.sink) - largest);
  for (double& o : out) o /= sum;
  return out;
}

// The same recurrence written block-wise and dense: scores of a block first, wholly masked blocks and groups left out,
// masked keys zero vectors, the keys of a 16-group taken in reverse for P·V.
std::vector<uint16_t> dense(const Problem& p, const Mask& allowed) {
  const int block = attention_block(p.dim);
  const float factor = p.scale.factor();
  std::vector<float> total(static_cast<size_t>(p.dim));
  float total_r = kMinusInf, total_l = 0;
  for (int64_t super = 0; super < p.n; super += 2048) {
    std::vector<float> o(static_cast<size_t>(p.dim), 0.0f);
    float l[4] = {}, r = kMinusInf;
    for (int64_t start = super; start < std::min<int64_t>(p.n, super + 2048); start += block) {
      std::vector<float> s(static_cast<size_t>(block), kMinusInf);
      float largest = kMinusInf;
      bool any = false;
      for (int j = 0; j < block; j++) {
        if (start + j >= p.n || !allowed(start + j)) continue;
        any = true;
        float c = 0;
        for (int d = 0; d < p.dim; d += 16) c = dot16(c, p.key(start + j) + d, p.q.data() + d);
        s[static_cast<size_t>(j)] = p.scale.score(c);
        largest = std::max(largest, s[static_cast<size_t>(j)]);
      }
      if (!any) continue;
      const float b = fmul(largest, factor);
      float alpha = 1;
      if (b > r) {
        alpha = ex2(fsub(r, b));
        r = b;
        for (float& e : o) e = fmul(e, alpha);
      }
      for (int g = 0; g < block; g += 16) {
        float v[16];
        uint16_t bf[16];
        bool group = false;
        for (int i = 0; i < 16; i++) {
          const float x = s[static_cast<size_t>(g + i)];
          v[i] = x == kMinusInf ? 0.0f : ex2(ffma(x, factor, -r));
          bf[15 - i] = f32_to_bf16(v[i]);
          group = group || x != kMinusInf;
        }
        for (int x = 0; x < 4; x++) {
          const float u = fadd(fadd(v[2 * x], v[2 * x + 8]), fadd(v[2 * x + 1], v[2 * x + 9]));
          if (g == 0) {
            l[x] = ffma(l[x], alpha, u);
          } else if (group) {
            l[x] = fadd(l[x], u);
          }
        }
        if (!group) continue;
        for (int d = 0; d < p.dim; d++) {
          uint16_t column[16] = {};
          for (int i = 0; i < 16; i++) {
            const int64_t j = start + g + i;
            if (j < p.n && allowed(j)) column[15 - i] = p.value(j)[d];
          }
          o[static_cast<size_t>(d)] = dot16(o[static_cast<size_t>(d)], bf, column);
        }
      }
    }
    if (r == kMinusInf) continue;
    const float sum = fadd(fadd(l[0], l[1]), fadd(l[2], l[3]));
    if (total_r == kMinusInf) {
      total_r = r, total_l = sum, total = o;
      continue;
    }
    const float m = std::max(r, total_r), a = ex2(fsub(total_r, m)), b = ex2(fsub(r, m));
    total_l = ffma(sum, b, fmul(total_l, a));
    for (size_t d = 0; d < o.size(); d++) total[d] = ffma(o[d], b, fmul(total[d], a));
    total_r = m;
  }
  std::vector<uint16_t> out(static_cast<size_t>(p.dim), 0);
  if (total_r == kMinusInf) return out;
  if (p.sink != nullptr) total_l = fadd(total_l, ex2(fsub(fmul(*p.sink, kLog2E), total_r)));
  const float inv = fdiv(1, total_l);
  for (size_t d = 0; d < out.size(); d++) out[d] = f32_to_bf16(fadd(fmul(total[d], inv), 0));
  return out;
}

const Mask kAll = [](int64_t) { return true; };

TEST(Attention, NearFloat64) {
  Random random;
  SCOPED_TRACE(random.note());
  const float sink = 1.25f;
  for (const auto& [dim, n] : {std::pair{64, 1}, {64, 130}, {128, 1000}, {16, 5000}, {256, 200}, {96, 300}}) {
    for (const float cap : {0.0f, 20.0f}) {
      for (const bool with_sink : {false, true}) {
        Problem p = make(random, dim, n);
        p.scale.soft_cap = cap;
        if (with_sink) p.sink = &sink;
        const Mask some = [](int64_t j) { return j % 5 != 1; };
        for (const Mask& mask : {kAll, some}) {
          const auto got = p.run(mask);
          const auto expected = exact(p, mask);
          for (size_t d = 0; d < got.size(); d++) {
            ASSERT_NEAR(bf16_to_f32(got[d]), expected[d], 0x1p-7) << "dim " << dim << ", n " << n;
          }
        }
      }
    }
  }
}

// Random masks of every kind, large scores so that the maximum grows and the sums are rescaled.
TEST(Attention, EqualsTheDenseFormBitForBit) {
  Random random;
  SCOPED_TRACE(random.note());
  int rescaled = 0;
  for (int i = 0; i < 40; i++) {
    const int dim = i % 8 == 0 ? 256 : 16 << random.below(3);
    const int64_t n = 1 + random.below(i % 4 == 0 ? 5000 : 700);
    Problem p = make(random, dim, n, i % 2 == 0 ? 8.0f : 1.0f);
    p.scale.soft_cap = i % 5 == 0 ? 30.0f : 0.0f;
    const int64_t first = random.below(static_cast<int>(n)), hole = random.below(static_cast<int>(n));
    const int kind = random.below(4);
    const uint64_t salt = random.bits();
    const Mask mask = [=](int64_t j) {
      if (kind == 0) return true;
      if (kind == 1) return j >= first;                   // a window
      if (kind == 2) return j < hole || j >= hole + 300;  // a hole
      return (salt >> (j % 61) & 1) != 0;
    };
    const auto a = p.run(mask), b = dense(p, mask);
    ASSERT_EQ(a, b) << "dim " << dim << ", n " << n << ", mask " << kind;
    rescaled += i % 2 == 0 ? 1 : 0;
  }
  EXPECT_GT(rescaled, 0);
}

TEST(Attention, MaskedAndAbsentKeysLeaveNoTrace) {
  Random random;
  SCOPED_TRACE(random.note());
  for (int i = 0; i < 12; i++) {
    const int dim = 32;
    const int64_t n = 300 + random.below(2500), window = random.below(static_cast<int>(n));
    Problem p = make(random, dim, n, 4.0f);
    const Mask mask = [=](int64_t j) { return j >= window && j < n; };
    const auto before = p.run(mask);
    // Whatever lies where no key is allowed, garbage included, and however far the positions go on.
    Problem q = p;
    for (int64_t j = 0; j < window; j++) {
      for (int d = 0; d < dim; d++) {
        q.k[static_cast<size_t>(j * dim + d)] = static_cast<uint16_t>(random.bits32());
        q.v[static_cast<size_t>(j * dim + d)] = static_cast<uint16_t>(random.bits32());
      }
    }
    EXPECT_EQ(q.run(mask), before);
    EXPECT_EQ(q.run(mask, n + random.below(5000)), before);
  }
}

TEST(Attention, NoAllowedKeyGivesZero) {
  Random random;
  SCOPED_TRACE(random.note());
  Problem p = make(random, 64, 200);
  const float sink = 0.5f;
  EXPECT_EQ(p.run([](int64_t) { return false; }), std::vector<uint16_t>(64, 0));
  p.sink = &sink;
  EXPECT_EQ(p.run([](int64_t) { return false; }), std::vector<uint16_t>(64, 0));
  EXPECT_EQ(p.run(kAll, 0), std::vector<uint16_t>(64, 0));
}

TEST(Attention, OneKeyGivesItsValue) {
  Random random;
  SCOPED_TRACE(random.note());
  Problem p = make(random, 64, 4000);
  p.scale.scale = 1.0f;
  for (int i = 0; i < 20; i++) {
    const int64_t only = random.below(4000);
    const auto out = p.run([=](int64_t j) { return j == only; });
    // p = 2^t with t the rounding error of score·factor, taken in P (bf16: 1) and in the sum.
    for (int d = 0; d < 64; d++) {
      const auto got = static_cast<double>(bf16_to_f32(out[static_cast<size_t>(d)]));
      const auto v = static_cast<double>(bf16_to_f32(p.value(only)[d]));
      ASSERT_NEAR(got, v, std::fabs(v) * 0x1p-8);
    }
  }
}

TEST(Attention, ZerosComeOutPositive) {
  Problem p{16, 3, {}, {}, {}, {1.0f, 0.0f}, nullptr};
  p.q.assign(16, 0x3f80);
  p.k.assign(48, 0x3f80);
  p.v.assign(48, 0x8000);  // -0
  EXPECT_EQ(p.run(kAll), std::vector<uint16_t>(16, 0));
  p.v.assign(48, 0x8001);  // the smallest negative: rounds to zero or stays, never -0
  for (const uint16_t o : p.run(kAll)) EXPECT_NE(o, 0x8000);
}

TEST(Attention, TheMaximumIsExact) {
  AttentionSums s;
  EXPECT_EQ(attention_grow(s, kMinusInf, 1.0f), 1.0f);
  EXPECT_EQ(s.r, kMinusInf);
  EXPECT_EQ(bits(attention_grow(s, 3.0f, 1.0f)), 0u);  // the first maximum: nothing before it counts
  EXPECT_EQ(s.r, 3.0f);
  EXPECT_EQ(attention_grow(s, 3.0f, 1.0f), 1.0f);
  EXPECT_EQ(attention_grow(s, 2.0f, 1.0f), 1.0f);
  EXPECT_EQ(s.r, 3.0f);
  EXPECT_EQ(attention_grow(s, from_bits(bits(3.0f) + 1), 1.0f), ex2(fsub(3.0f, from_bits(bits(3.0f) + 1))));
  EXPECT_EQ(s.r, from_bits(bits(3.0f) + 1));
  EXPECT_EQ(attention_grow(s, kMinusInf, 1.0f), 1.0f);
  EXPECT_EQ(attention_grow(s, from_bits(kNaN32), 1.0f), 1.0f);
}

TEST(Attention, HalfPrecisionFollowsTheSameRule) {
  Random random;
  SCOPED_TRACE(random.note());
  const int dim = 64, n = 300;
  std::vector<uint16_t> q(dim), k(dim * n), v(dim * n), out(dim);
  Problem p = make(random, dim, n);
  for (size_t i = 0; i < q.size(); i++) q[i] = f32_to_f16(bf16_to_f32(p.q[i]));
  for (size_t i = 0; i < k.size(); i++) k[i] = f32_to_f16(bf16_to_f32(p.k[i])), v[i] = f32_to_f16(bf16_to_f32(p.v[i]));
  attention_row<Operand::kF16>(
      q.data(), dim, n, [&](int64_t j) { return k.data() + j * dim; }, [&](int64_t j) { return v.data() + j * dim; },
      kAll, p.scale, nullptr, out.data());
  const auto expected = exact(p, kAll);
  for (size_t d = 0; d < out.size(); d++) ASSERT_NEAR(f16_to_f32(out[d]), expected[d], 0x1p-10);
}

}  // namespace
}  // namespace isobit::numerics
