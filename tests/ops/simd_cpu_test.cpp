// src/ops/cpu/simd-inl.h against src/numerics, by bytes, on every SIMD target this machine has.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "../tests/ops/simd_cpu_test.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

// op 0: ex2, 1: silu, 2: gelu_tanh, 3: round to bf16 (as its value), 4: int32 bits to f32 toward zero
void Unary(int op, const float* x, size_t n, float* y) {
  const F32 d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i);
    auto r = v;
    if (op == 0) r = Ex2(d, v);
    if (op == 1) r = Canonical(d, Silu(d, v));
    if (op == 2) r = Canonical(d, GeluTanh(d, v));
    if (op == 3) r = hn::BitCast(d, hn::ShiftLeft<16>(RoundBF16(d, v)));
    if (op == 4) r = TowardZero(d, hn::BitCast(I32Of<F32>(), v));
    hn::StoreU(r, d, y + i);
  }
}

void Store16(const float* x, size_t n, uint16_t* y) {
  const F32 d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) StoreBF16(d, hn::LoadU(d, x + i), y + i);
}

// columns: a multiple of 16
void Step(const DotRow& a, const uint16_t* b, size_t columns, float* c) {
  const F32 d;
  for (size_t i = 0; i < columns; i += hn::Lanes(d))
    hn::StoreU(Dot16(d, hn::LoadU(d, c + i), a, b + i, columns), d, c + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {
namespace {

HWY_EXPORT(Unary);
HWY_EXPORT(Store16);
HWY_EXPORT(Step);

using namespace numerics;

std::vector<int64_t> targets() {
  std::vector<int64_t> list;
  for (int64_t all = hwy::SupportedTargets() & HWY_TARGETS, t; all != 0; all &= ~t) list.push_back(t = all & -all);
#if HWY_ARCH_X86
  if ((list.back() & (HWY_EMU128 | HWY_SCALAR)) == 0) list.push_back(HWY_EMU128);
#endif
  return list;
}

template <typename Fn>
void on_each_target(Fn fn) {
  for (const int64_t t : targets()) {
    SCOPED_TRACE(hwy::TargetName(t));
    fn(t);
  }
}

uint64_t fresh_seed() {
  const uint64_t seed = std::random_device{}();
  printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

float one(int op, float x) {
  if (op == 0) return ex2(x);
  if (op == 1) return canonical(silu(x));
  if (op == 2) return canonical(gelu_tanh(x));
  if (op == 3) return bf16_to_f32(f32_to_bf16(x));
  return numerics::detail::to_f32_toward_zero(static_cast<int32_t>(bits(x)), 0, 24);
}

void check_unary(const std::vector<float>& x) {
  on_each_target([&](int64_t t) {
    for (int op = 0; op < 5; op++) {
      std::vector<float> y(x.size(), from_bits(0xdeadbeef));
      for_target(HWY_DISPATCH_TABLE(Unary), t)(op, x.data(), x.size(), y.data());
      for (size_t i = 0; i < x.size(); i++) {
        ASSERT_EQ(bits(y[i]), bits(one(op, x[i]))) << "op " << op << " of bits " << bits(x[i]);
      }
    }
  });
}

TEST(SimdCpu, FunctionsOfOneValue) {
  std::mt19937_64 g(fresh_seed());
  std::vector<float> x;
  for (uint32_t sign : {0u, 0x80000000u}) {  // every exponent, with the ends and random mantissas
    for (uint32_t e = 0; e < 256; e++) {
      for (uint32_t m : {0u, 1u, 0x7fffffu, 0x7fffu, 0x8000u, 0x18000u, 0x8001u, 0x400000u})
        x.push_back(from_bits(sign | e << 23 | m));
      for (int i = 0; i < 24; i++) x.push_back(from_bits(sign | e << 23 | (g() & 0x7fffff)));
    }
  }
  std::uniform_real_distribution<float> u(-160, 160);
  for (int i = 0; i < 64 * 1024; i++) x.push_back(u(g));
  for (int i = 0; i < 64 * 1024; i++) x.push_back(from_bits(static_cast<uint32_t>(g())));
  check_unary(x);
}

TEST(SimdCpu, StoresRoundedBF16) {
  std::mt19937_64 g(fresh_seed());
  std::vector<float> x(4096);
  for (float& v : x) v = from_bits(static_cast<uint32_t>(g()));
  x[0] = from_bits(0xffffffff), x[1] = from_bits(0xff800000), x[2] = from_bits(0xff7fffff), x[3] = -0.0f;
  on_each_target([&](int64_t t) {
    std::vector<uint16_t> y(x.size(), 0xdead);
    for_target(HWY_DISPATCH_TABLE(Store16), t)(x.data(), x.size(), y.data());
    for (size_t i = 0; i < x.size(); i++) ASSERT_EQ(y[i], f32_to_bf16(x[i])) << bits(x[i]);
  });
}

// Values of several kinds: ordinary, spread over many octaves with zeros, near-full mantissas, tiny, anything at all.
uint16_t draw(std::mt19937_64& g, int kind) {
  std::normal_distribution<float> normal;
  switch (kind) {
    case 0:
      return f32_to_bf16(normal(g));
    case 1:
      return g() % 4 == 0 ? uint16_t{0} : f32_to_bf16(std::ldexp(normal(g), static_cast<int>(g() % 32) - 16));
    case 2:
      return static_cast<uint16_t>(0x3fff - g() % 2);
    case 3:
      return static_cast<uint16_t>(0x3fff | (g() & 0x8000));
    case 4:
      return f32_to_bf16(std::ldexp(normal(g), static_cast<int>(g() % 40) - 80));
    case 5:
      return g() % 8 == 0 ? static_cast<uint16_t>(g() & 0x80ff) : f32_to_bf16(normal(g));
    case 6:
      return 0;
    case 7:
      return g() % 64 == 0 ? static_cast<uint16_t>(0x7f80 | (g() & 0x8001)) : f32_to_bf16(normal(g));
    default:
      return static_cast<uint16_t>(g());
  }
}

TEST(SimdCpu, Dot16) {
  std::mt19937_64 g(fresh_seed());
  constexpr size_t kColumns = 48;
  constexpr int kKinds = 9;
  for (int round = 0; round < 6 * kKinds * kKinds; round++) {
    const int ka = round % kKinds, kb = round / kKinds % kKinds;
    DotRow a;
    uint16_t values[16], b[16 * kColumns];
    for (auto& v : values) v = draw(g, ka);
    for (auto& v : b) v = draw(g, kb);
    set_row(a, values);
    float c[kColumns];
    for (size_t i = 0; i < kColumns; i++) {
      const int kind = static_cast<int>(g() % 4);
      c[i] = kind == 0   ? 0.0f
             : kind == 1 ? from_bits(static_cast<uint32_t>(g()))
             : kind == 2 ? std::ldexp(1.0f + static_cast<float>(g() % 4096) / 4096, static_cast<int>(g() % 60) - 30)
                         : from_bits(static_cast<uint32_t>(bf16_to_f32(draw(g, ka)) != 0 ? 0x407fffff : 0x80000000));
    }
    on_each_target([&](int64_t t) {
      float y[kColumns];
      std::copy(c, c + kColumns, y);
      for (int step = 0; step < 3; step++) {
        float want[kColumns];
        for (size_t i = 0; i < kColumns; i++) want[i] = dot16(y[i], values, b + i, kColumns);
        for_target(HWY_DISPATCH_TABLE(Step), t)(a, b, kColumns, y);
        for (size_t i = 0; i < kColumns; i++) {
          ASSERT_EQ(bits(y[i]), bits(want[i])) << "kinds " << ka << ' ' << kb << ", step " << step << ", column " << i;
        }
      }
    });
  }
}

}  // namespace
}  // namespace isobit::cpu
#endif
