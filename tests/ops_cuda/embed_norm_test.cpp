// Embedding and RMSNorm on the GPU against the scalar rules, by bytes.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "numerics/activation.h"
#include "numerics/norm.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/linear_cuda.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

cuda::KernelContext context() {
  cuda::KernelContext c;
  c.sm_count = 132;
  return c;
}

void finish() { cuda::check(cudaDeviceSynchronize(), "kernel"); }

// Ordinary values, with zeros, subnormals, huge ones, infinities and NaNs among them where asked for.
std::vector<float> draw(size_t count, bool hostile, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> v(count);
  for (float& x : v) {
    x = normal(random);
    if (!hostile) continue;
    const uint64_t r = random();
    if (r % 5 == 0) x = std::ldexp(x, static_cast<int>(r >> 8 & 0x7f) - 64);
    if (r % 997 == 0) x = numerics::from_bits(static_cast<uint32_t>(r >> 32));
  }
  return v;
}

TEST(GpuEmbed, RowsOfEveryWidthAndType) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const int64_t hidden : {1, 7, 8, 12, 576, 2048, 4096, 8200}) {
      for (const float scale : {1.0f, 48.0f, 0.3f}) {
        const int64_t vocab = 301, row = cuda::CudaLinear::padded_k(hidden);
        std::vector<uint16_t> table(static_cast<size_t>(vocab * row));
        for (uint16_t& x : table) x = static_cast<uint16_t>(random());
        const GpuArray<uint16_t> gpu_table(table);
        const std::shared_ptr<void> view(gpu_table.data(), [](void*) {});
        const cuda::CudaLinear linear(vocab, hidden, LinearForm::kStacked, type, Buffer(view, table.size() * 2));
        std::vector<int32_t> tokens(67);
        for (int32_t& t : tokens) t = static_cast<int32_t>(random() % 302) - 1;
        tokens[0] = 300, tokens[1] = -1;
        for (int32_t& t : tokens) t = t == 301 ? 0 : t;
        const GpuArray<int32_t> gpu_tokens(tokens);
        const GpuArray<float> out(tokens.size() * static_cast<size_t>(hidden));
        EmbedArgs a;
        a.table = &linear, a.tokens = gpu_tokens.data(), a.count = static_cast<int64_t>(tokens.size());
        a.scale = scale, a.out = out.data();
        a.check();
        launch_embed(a, context());
        finish();
        const std::vector<float> got = out.get();
        int wrong = 0;
        for (size_t i = 0; i < got.size(); i++) {
          const int32_t token = tokens[i / static_cast<size_t>(hidden)];
          const auto k = static_cast<int64_t>(i % static_cast<size_t>(hidden));
          const uint16_t bits = token < 0 ? 0 : table[static_cast<size_t>(cuda::CudaLinear::place(vocab, token, k))];
          const float x = type == DType::kBF16 ? numerics::bf16_to_f32(bits) : numerics::f16_to_f32(bits);
          const float want = token < 0 ? 0.0f : numerics::canonical(scale == 1.0f ? x : numerics::fmul(x, scale));
          wrong += numerics::bits(got[i]) != numerics::bits(want) ? 1 : 0;
        }
        EXPECT_EQ(wrong, 0) << "hidden " << hidden << " scale " << scale;
        EXPECT_TRUE(out.guards_intact());
      }
    }
  }
}

void check_norm(int64_t count, int64_t n, DType type, bool gather, bool hostile, std::mt19937_64& random) {
  const int64_t pool = gather ? count + 3 : count;
  const std::vector<float> x = draw(static_cast<size_t>(pool * n), hostile, random);
  const std::vector<float> weight = draw(static_cast<size_t>(n), false, random);
  std::vector<int32_t> rows(static_cast<size_t>(count));
  for (int32_t& r : rows) r = static_cast<int32_t>(random() % static_cast<uint64_t>(pool + 1)) - 1;
  const GpuArray<float> gpu_x(x), gpu_weight(weight);
  const GpuArray<int32_t> gpu_rows(rows);
  const GpuArray<uint16_t> out(static_cast<size_t>(count * n));
  RmsNormArgs a;
  a.x = gpu_x.data(), a.rows = gather ? gpu_rows.data() : nullptr, a.weight = gpu_weight.data();
  a.count = count, a.n = n, a.eps = 1e-5f, a.out_type = type, a.out = out.data();
  a.check();
  launch_rms_norm(a, context());
  finish();
  const std::vector<uint16_t> got = out.get();
  int wrong = 0;
  for (int64_t i = 0; i < count; i++) {
    const int64_t row = gather ? rows[static_cast<size_t>(i)] : i;
    const float* in = row < 0 ? nullptr : &x[static_cast<size_t>(row * n)];
    const float scale = row < 0 ? 0.0f : numerics::rms_scale(numerics::sum_of_squares(in, n), n, a.eps);
    for (int64_t j = 0; j < n; j++) {
      const float y = row < 0 ? 0.0f : numerics::rms_value(in[j], scale, weight[static_cast<size_t>(j)]);
      const uint16_t want = type == DType::kBF16 ? numerics::f32_to_bf16(y) : numerics::f32_to_f16(y);
      wrong += got[static_cast<size_t>(i * n + j)] != want ? 1 : 0;
    }
  }
  EXPECT_EQ(wrong, 0) << count << " x " << n << " gather " << gather << " hostile " << hostile;
  EXPECT_TRUE(out.guards_intact());
}

TEST(GpuRmsNorm, EveryWidth) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const int64_t n : {1, 2, 3, 4, 31, 64, 576, 1000, 1023, 1024, 1025, 2048, 3072, 4096, 5120, 8192, 8193, 20000}) {
    for (const DType type : {DType::kBF16, DType::kF16}) {
      check_norm(13, n, type, false, false, random);
      check_norm(13, n, type, true, true, random);
    }
  }
  check_norm(1, 4096, DType::kBF16, false, false, random);
  check_norm(2000, 576, DType::kBF16, false, true, random);
  check_norm(600, 4096, DType::kBF16, true, false, random);
  for (const int64_t n : {1, 7, 128, 130, 577, 896, 1023, 1024}) {
    check_norm(2111, n, DType::kBF16, false, true, random);  // many rows take another kernel
    check_norm(1500, n, DType::kF16, true, true, random);
  }
}

// The norm after a sublayer, added to the residual stream: both kernels.
TEST(GpuRmsNorm, AddsToTheResidual) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const int64_t n : {1, 7, 32, 577, 640, 1024, 1025, 2304, 5120, 9001}) {
    for (const int64_t count : {3, 1100}) {
      if (n > 1024 && count > 3) continue;
      const auto size = static_cast<size_t>(count * n);
      const std::vector<float> x = draw(size, true, random), weight = draw(static_cast<size_t>(n), false, random),
                               residual = draw(size, true, random);
      const GpuArray<float> gpu_x(x), gpu_weight(weight), out(residual);
      RmsNormArgs a;
      a.x = gpu_x.data(), a.weight = gpu_weight.data(), a.count = count, a.n = n, a.eps = 1e-6f, a.add_to = out.data();
      a.check();
      launch_rms_norm(a, context());
      finish();
      const std::vector<float> got = out.get();
      int wrong = 0;
      for (int64_t i = 0; i < count; i++) {
        const float* in = &x[static_cast<size_t>(i * n)];
        const float scale = numerics::rms_scale(numerics::sum_of_squares(in, n), n, a.eps);
        for (int64_t j = 0; j < n; j++) {
          const float y = numerics::rms_value(in[j], scale, weight[static_cast<size_t>(j)]);
          const float want = numerics::canonical(numerics::fadd(residual[static_cast<size_t>(i * n + j)], y));
          wrong += numerics::bits(got[static_cast<size_t>(i * n + j)]) != numerics::bits(want) ? 1 : 0;
        }
      }
      EXPECT_EQ(wrong, 0) << count << " x " << n;
      EXPECT_TRUE(out.guards_intact());
    }
  }
}

TEST(GpuSoftCap, EqualsTheRule) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const size_t count : {1, 255, 257, 32768, 700001}) {
    std::vector<float> x = draw(count, true, random);
    const GpuArray<float> values(x);
    SoftCapArgs a{values.data(), static_cast<int64_t>(count), 30.0f};
    a.check();
    launch_soft_cap(a, context());
    finish();
    const std::vector<float> got = values.get();
    int wrong = 0;
    for (size_t i = 0; i < count; i++) {
      wrong +=
          numerics::bits(got[i]) != numerics::bits(numerics::canonical(numerics::soft_capped(x[i], 30.0f))) ? 1 : 0;
    }
    EXPECT_EQ(wrong, 0) << count;
    EXPECT_TRUE(values.guards_intact());
  }
}

}  // namespace
}  // namespace isobit
