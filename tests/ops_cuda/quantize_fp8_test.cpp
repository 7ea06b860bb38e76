// Quantisation on the GPU, alone and fused, against rules N8, N11 and N18 by bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "numerics/activation.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

enum class Form { kPlain, kNorm, kGated };

struct Problem {
  Form form = Form::kPlain;
  DType x_type = DType::kBF16, round_type = DType::kBF16;
  int64_t count = 0, n = 0;
  uint64_t seed = fresh_seed();
};

uint16_t narrow(float v, DType t) { return t == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v); }
float widen(uint16_t h, DType t) { return t == DType::kBF16 ? numerics::bf16_to_f32(h) : numerics::f16_to_f32(h); }

void check(const Problem& p) {
  SCOPED_TRACE(fmt::format("form {} x {} round {} count {} n {} seed {}", static_cast<int>(p.form),
                           dtype_info(p.x_type).name, dtype_info(p.round_type).name, p.count, p.n, p.seed));
  std::mt19937_64 rng(p.seed);
  std::normal_distribution<float> normal;
  const int64_t width = p.form == Form::kGated ? 2 * p.n : p.n, row_bytes = fp8_row_bytes(p.n);
  std::vector<float> x(static_cast<size_t>(p.count * width)), weight(static_cast<size_t>(p.n));
  for (float& v : x) {
    v = std::ldexp(normal(rng), static_cast<int>(rng() % 24) - 12);
    if (rng() % 3000 == 0) v = numerics::from_bits(static_cast<uint32_t>(rng()));  // NaN, infinity, anything
    if (rng() % 7 == 0) v = 0.0f;
  }
  std::fill_n(x.begin(), std::min<size_t>(x.size(), 200), 0.0f);  // a block without a magnitude
  for (float& v : weight) v = normal(rng);
  std::vector<uint16_t> half(x.size());
  const bool wide = p.x_type == DType::kF32;
  for (size_t i = 0; i < x.size(); i++) {
    half[i] = wide ? uint16_t{0} : narrow(x[i], p.x_type);
    if (!wide) x[i] = widen(half[i], p.x_type);
  }

  const int64_t stride = fp8_scale_stride(p.count) + 4;
  const GpuArray<float> gpu_x(x), gpu_weight(weight);
  const GpuArray<uint16_t> gpu_half(half);
  GpuArray<uint8_t> out(static_cast<size_t>(p.count * row_bytes));
  GpuArray<float> scale(static_cast<size_t>(fp8_blocks(p.n) * stride));
  QuantizeFp8Args a;
  a.x = wide ? static_cast<const void*>(gpu_x.data()) : gpu_half.data();
  a.x_type = p.x_type;
  a.count = p.count;
  a.n = p.n;
  a.weight = p.form == Form::kNorm ? gpu_weight.data() : nullptr;
  a.gated = p.form == Form::kGated ? GatedKind::kSilu : GatedKind::kNone;
  a.round_type = p.round_type;
  a.out = out.data();
  a.scale = scale.data();
  a.scale_stride = stride;
  a.check();
  cuda::KernelContext context;
  context.sm_count = 132;
  launch_quantize_fp8(a, context);
  cuda::check(cudaDeviceSynchronize(), "quantize_fp8");
  EXPECT_TRUE(out.guards_intact() && scale.guards_intact());
  const std::vector<uint8_t> got = out.get();
  const std::vector<float> got_scale = scale.get();

  for (int64_t row = 0; row < p.count; row++) {
    const float* in = &x[static_cast<size_t>(row * width)];
    const float norm = p.form == Form::kNorm ? numerics::rms_scale(numerics::sum_of_squares(in, p.n), p.n, a.eps) : 0;
    for (int64_t b = 0; b < fp8_blocks(p.n); b++) {
      float v[128] = {}, amax = 0.0f;
      const int64_t count = std::min<int64_t>(128, p.n - b * 128);
      for (int64_t i = 0; i < count; i++) {
        const int64_t j = b * 128 + i;
        v[i] = in[j];
        if (p.form == Form::kNorm) {
          v[i] = widen(narrow(numerics::rms_value(in[j], norm, weight[static_cast<size_t>(j)]), p.round_type),
                       p.round_type);
        } else if (p.form == Form::kGated) {
          v[i] = widen(narrow(numerics::fmul(numerics::silu(in[j]), in[p.n + j]), p.round_type), p.round_type);
        }
        amax = numerics::fmax(amax, std::fabs(v[i]));
      }
      const float want = numerics::e4m3_scale(amax);
      ASSERT_EQ(numerics::bits(got_scale[static_cast<size_t>(b * stride + row)]), numerics::bits(want))
          << "row " << row << " block " << b;
      for (int64_t i = 0; i < 128; i++) {
        const uint8_t e = i < count ? numerics::e4m3_value(v[i], want) : uint8_t{0};
        ASSERT_EQ(got[static_cast<size_t>(row * row_bytes + b * 128 + i)], e)
            << "row " << row << " value " << b * 128 + i;
      }
    }
  }
}

TEST(GpuQuantizeFp8, EveryFormOnRaggedShapes) {
  for (const int64_t n : {1, 100, 127, 128, 576, 1300, 7168, 9000}) {
    for (const int64_t count : {1, 7, 70}) {
      for (const DType t : {DType::kBF16, DType::kF16}) {
        check({Form::kPlain, t, t, count, n});
        check({Form::kNorm, DType::kF32, t, count, n});
        check({Form::kGated, DType::kF32, t, count, n});
        check({Form::kGated, t, t, count, n});
      }
    }
  }
}

}  // namespace
}  // namespace isobit
