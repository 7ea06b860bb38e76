// The CPU's FP8 GEMM and quantisation against the scalar rules, by bytes, on every SIMD target.
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "numerics/activation.h"
#include "numerics/gemm.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "numerics/testing.h"
#include "ops/cpu/gemm_fp8.h"
#include "ops/cpu/simd_target.h"

namespace isobit::cpu {
namespace {

using isobit::testing::Random;

// How spread values are: all exponents, a few, nearly only the largest (sums at the end of int32), or NaN among them.
enum class Values { kAny, kNear, kFull, kNan };

uint8_t draw(Random& r, Values v) {
  const auto b = static_cast<uint8_t>(r.bits());
  switch (v) {
    case Values::kNear:
      return static_cast<uint8_t>((b & 0x8f) | (5 + r.bits() % 4) << 3);
    case Values::kFull:
      return static_cast<uint8_t>(0x7e - r.bits() % 2);
    case Values::kNan:
      if (r.bits() % 500 == 0) return b | 0x7f;
      [[fallthrough]];
    default:
      return (b & 0x7f) == 0x7f ? static_cast<uint8_t>(b & 0x80) : b;
  }
}

float draw_scale(Random& r) {
  switch (r.bits() % 24) {
    case 0:
      return 0.0f;
    case 1:
      return numerics::from_bits(static_cast<uint32_t>(r.bits()) & 0x807fffff);
    case 2:
      return numerics::from_bits(static_cast<uint32_t>(r.bits()));  // anything, NaN and infinity too
    default:
      return std::ldexp(r.normal(), static_cast<int>(r.range(-12, 4)));
  }
}

std::vector<int64_t> targets() {
  std::vector<int64_t> all;
  for (const std::string& name : simd_target_names()) all.push_back(simd_target(name));
  return all;
}

void check_gemm(Random& r, ThreadPool& pool, int64_t m, int64_t n, int64_t k, DType out_type, Values values) {
  SCOPED_TRACE(::testing::Message() << r.note() << " m " << m << " n " << n << " k " << k << " values "
                                    << static_cast<int>(values));
  const int64_t row = fp8_row_bytes(k), blocks = fp8_blocks(k), stride = fp8_scale_stride(m);
  std::vector<uint8_t> x(static_cast<size_t>(m * row)), w(static_cast<size_t>(fp8_stored_rows(n) * row), 0x7f);
  for (int64_t i = 0; i < m * row; i++) x[static_cast<size_t>(i)] = i % row < k ? draw(r, values) : uint8_t{0};
  for (int64_t i = 0; i < n * row; i++) w[static_cast<size_t>(i)] = i % row < k ? draw(r, values) : uint8_t{0};
  std::vector<float> x_scale(static_cast<size_t>(blocks * stride)),
      w_scale(static_cast<size_t>(fp8_blocks(n) * blocks));
  for (float& s : x_scale) s = draw_scale(r);
  for (float& s : w_scale) s = draw_scale(r);
  const size_t bytes = out_type == DType::kF32 ? 4 : 2;
  std::vector<uint8_t> want(static_cast<size_t>(m * n) * bytes);
  std::vector<float> scales(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < m; i++) {
    for (int64_t b = 0; b < blocks; b++) {
      scales[static_cast<size_t>(b)] = x_scale[static_cast<size_t>(b * stride + i)];
    }
    for (int64_t j = 0; j < n; j++) {
      const float v = numerics::gemm_fp8_dot(&x[static_cast<size_t>(i * row)], &w[static_cast<size_t>(j * row)],
                                             scales.data(), &w_scale[static_cast<size_t>(j / 128 * blocks)], k);
      const uint32_t u = out_type == DType::kF32    ? numerics::bits(numerics::canonical(v))
                         : out_type == DType::kBF16 ? numerics::f32_to_bf16(v)
                                                    : numerics::f32_to_f16(v);
      std::memcpy(&want[static_cast<size_t>(i * n + j) * bytes], &u, bytes);
    }
  }
  for (const int64_t target : targets()) {
    SCOPED_TRACE(simd_target_name(target));
    std::vector<uint8_t> got(want.size(), 0xcd);
    const GemmFp8Args a{x.data(), x_scale.data(), m, stride, w.data(), w_scale.data(), n, k, out_type, got.data()};
    gemm_fp8({pool, target}, a);
    ASSERT_EQ(got == want, true);
  }
}

TEST(GemmFp8Cpu, EqualsTheRule) {
  Random r;
  ThreadPool pool(2);
  constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
  constexpr Values kValues[] = {Values::kAny, Values::kNear, Values::kFull, Values::kNan};
  for (int i = 0; i < 40; i++) {
    check_gemm(r, pool, r.range(1, 9), r.range(1, 70), r.range(1, 400), kTypes[i % 3], kValues[i / 3 % 4]);
  }
  check_gemm(r, pool, 70, 33, 128, DType::kF32, Values::kAny);  // more rows than share a block of weights
  check_gemm(r, pool, 2, 290, 130, DType::kBF16, Values::kNear);
}

TEST(GemmFp8Cpu, ArgumentsAreChecked) {
  alignas(16) uint8_t x[128] = {};
  alignas(16) float scale[4] = {};
  alignas(16) uint16_t out[4];
  const GemmFp8Args good{x, scale, 1, 4, x, scale, 1, 100, DType::kBF16, out};
  EXPECT_NO_THROW(good.check());
  GemmFp8Args bad = good;
  bad.x_scale_stride = 1;
  EXPECT_THROW(bad.check(), Error);
  bad = good;
  bad.x = x + 1;
  EXPECT_THROW(bad.check(), Error);
  bad = good;
  bad.out_type = DType::kI32;
  EXPECT_THROW(bad.check(), Error);
  QuantizeFp8Args q;
  q.x = out;
  q.count = 1;
  q.n = 4;
  q.out = x;
  q.scale = scale;
  q.scale_stride = 4;
  EXPECT_NO_THROW(q.check());
  q.x_type = DType::kF32;
  EXPECT_THROW(q.check(), Error);
}

TEST(QuantizeFp8Cpu, EqualsTheRule) {
  Random r;
  ThreadPool pool(2);
  SCOPED_TRACE(r.note());
  for (const int64_t n : {1, 100, 128, 576, 1300}) {
    const int64_t count = 5, stride = fp8_scale_stride(count), row = fp8_row_bytes(n);
    std::vector<float> wide(static_cast<size_t>(count * 2 * n)), weight(static_cast<size_t>(n));
    for (float& v : wide) v = std::ldexp(r.normal(), static_cast<int>(r.range(-8, 8)));
    wide[0] = numerics::from_bits(numerics::kNaN32);
    for (float& v : weight) v = r.normal();
    std::vector<uint16_t> half(wide.size());
    for (size_t i = 0; i < wide.size(); i++) half[i] = numerics::f32_to_bf16(wide[i]);
    for (const int form : {0, 1, 2}) {
      // What the operator before a plain quantisation would have stored.
      std::vector<uint16_t> rounded(static_cast<size_t>(count * n));
      for (int64_t i = 0; i < count; i++) {
        const float scale =
            numerics::rms_scale(numerics::sum_of_squares(&wide[static_cast<size_t>(i * n)], n), n, 1e-5f);
        for (int64_t j = 0; j < n; j++) {
          const float plain = wide[static_cast<size_t>(i * n + j)];
          const float gate = wide[static_cast<size_t>(2 * i * n + j)],
                      up = wide[static_cast<size_t>((2 * i + 1) * n + j)];
          const float v = form == 0   ? plain
                          : form == 1 ? numerics::rms_value(plain, scale, weight[static_cast<size_t>(j)])
                                      : numerics::fmul(numerics::silu(gate), up);
          rounded[static_cast<size_t>(i * n + j)] = numerics::f32_to_bf16(v);
        }
      }
      std::vector<uint8_t> out(static_cast<size_t>(count * row), 0xcd);
      std::vector<float> scale(static_cast<size_t>(fp8_blocks(n) * stride), -1.0f);
      QuantizeFp8Args a;
      a.x = form == 0 ? static_cast<const void*>(half.data()) : wide.data();
      a.x_type = form == 0 ? DType::kBF16 : DType::kF32;
      a.count = count;
      a.n = n;
      a.weight = form == 1 ? weight.data() : nullptr;
      a.gated = form == 2 ? GatedKind::kSilu : GatedKind::kNone;
      a.out = out.data();
      a.scale = scale.data();
      a.scale_stride = stride;
      quantize_fp8({pool, simd_target("")}, a);
      for (int64_t i = 0; i < count; i++) {
        for (int64_t b = 0; b < fp8_blocks(n); b++) {
          float amax = 0.0f;
          for (int64_t j = b * 128; j < std::min(n, b * 128 + 128); j++) {
            amax = numerics::fmax(amax, std::fabs(numerics::bf16_to_f32(rounded[static_cast<size_t>(i * n + j)])));
          }
          const float want = numerics::e4m3_scale(amax);
          ASSERT_EQ(numerics::bits(scale[static_cast<size_t>(b * stride + i)]), numerics::bits(want));
          for (int64_t j = b * 128; j < b * 128 + 128; j++) {
            const float v = j < n ? numerics::bf16_to_f32(rounded[static_cast<size_t>(i * n + j)]) : 0.0f;
            const uint8_t e = j < n ? numerics::e4m3_value(v, want) : uint8_t{0};
            ASSERT_EQ(out[static_cast<size_t>(i * row + j)], e) << form << ' ' << i << ' ' << j;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace isobit::cpu
