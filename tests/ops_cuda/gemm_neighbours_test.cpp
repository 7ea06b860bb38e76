// A GEMM that takes its neighbours on, the norm before it and the rotation after it, against the three kernels by
// bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "numerics/convert.h"
#include "ops/cuda/gemm.h"
#include "ops/cuda/linear_cuda.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

using cuda::CudaLinear;

struct Shape {
  int64_t m = 1, k = 0;
  int q_heads = 4, kv_heads = 2, head_dim = 64;
  int rope_dim = 64;  // 0: none
  RopeLayout layout = RopeLayout::kInterleaved;
  DType type = DType::kBF16;
  bool hostile = false, bias = false, rows = false;

  int64_t n() const { return (q_heads + 2 * kv_heads) * head_dim; }
};

constexpr int64_t kPositions = 300;
constexpr int kPage = 16;

struct Outputs {
  std::vector<uint16_t> q, k, v;
  std::vector<int32_t> nonfinite;
  auto operator<=>(const Outputs&) const = default;
};

class Neighbours {
 public:
  Neighbours(const Shape& s, uint64_t seed) : s_(s), random_(seed) {
    const int64_t source_rows = s.rows ? s.m + 5 : s.m;
    x_ = std::make_unique<GpuArray<float>>(floats(source_rows * s.k, 2.0f, s.hostile));
    norm_ = std::make_unique<GpuArray<float>>(floats(s.k, 1.0f, false));
    bias_ = std::make_unique<GpuArray<float>>(floats(s.n(), 1.0f, false));
    const int64_t entries = kPositions * std::max(1, s.rope_dim / 2);
    cos_ = std::make_unique<GpuArray<float>>(floats(entries, 1.0f, false));
    sin_ = std::make_unique<GpuArray<float>>(floats(entries, 1.0f, false));
    const int64_t row = CudaLinear::padded_k(s.k);
    std::vector<uint16_t> w(static_cast<size_t>(s.n() * row), 0);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    const auto round = s.type == DType::kBF16 ? numerics::f32_to_bf16 : numerics::f32_to_f16;
    for (int64_t r = 0; r < s.n(); r++) {
      for (int64_t c = 0; c < s.k; c++) w[static_cast<size_t>(CudaLinear::place(s.n(), r, c))] = round(normal(random_));
    }
    w_ = std::make_unique<GpuArray<uint16_t>>(w);
    linear_ = std::make_unique<CudaLinear>(s.n(), s.k, LinearForm::kStacked, s.type,
                                           Buffer(std::shared_ptr<void>(w_->data(), [](void*) {}), w.size() * 2));
    std::vector<int32_t> rows, positions;
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < s.m; i++) {
      rows.push_back(random_() % 7 == 0 ? -1 : static_cast<int32_t>(random_() % static_cast<uint64_t>(source_rows)));
      const uint64_t r = s.m > 1 ? random_() % 9 : 8;
      positions.push_back(r == 0 ? static_cast<int32_t>(kPositions) : static_cast<int32_t>(random_() % kPositions));
      slots.push_back(r == 1 ? -1 : r == 2 ? pages() * kPage : i + 3);
    }
    rows_ = std::make_unique<GpuArray<int32_t>>(rows);
    positions_ = std::make_unique<GpuArray<int32_t>>(positions);
    slots_ = std::make_unique<GpuArray<int64_t>>(slots);
  }

  Outputs run(bool together, bool* took = nullptr) {
    const auto m = static_cast<size_t>(s_.m), cache = static_cast<size_t>(pages() * kPage * s_.kv_heads * s_.head_dim);
    GpuArray<uint16_t> normed(m * static_cast<size_t>(s_.k)), q(m * static_cast<size_t>(s_.q_heads * s_.head_dim));
    GpuArray<uint16_t> k(cache), v(cache);
    GpuArray<float> qkv(m * static_cast<size_t>(s_.n()));
    GpuArray<int32_t> nonfinite(std::vector<int32_t>(m, 0));
    GpuArray<uint8_t> workspace(size_t{4} << 20);
    for (auto* a : {&normed, &q, &k, &v}) a->poison();
    qkv.poison();
    RmsNormArgs n;
    n.x = x_->data(), n.rows = s_.rows ? rows_->data() : nullptr, n.weight = norm_->data();
    n.count = s_.m, n.n = s_.k, n.out_type = s_.type, n.out = normed.data();
    GemmArgs g;
    g.x = normed.data(), g.m = s_.m, g.w = linear_.get(), g.bias = s_.bias ? bias_->data() : nullptr;
    g.type = s_.type, g.out = qkv.data();
    RopeCacheArgs r;
    r.qkv = qkv.data(), r.positions = positions_->data(), r.slots = slots_->data(), r.count = s_.m;
    r.q_heads = s_.q_heads, r.rope_dim = s_.rope_dim, r.max_position = kPositions, r.layout = s_.layout;
    if (s_.rope_dim > 0) r.cos = cos_->data(), r.sin = sin_->data();
    r.cache = {k.data(), v.data(), pages(), s_.kv_heads, kPage, s_.head_dim, s_.type, nullptr, nullptr};
    r.type = s_.type, r.q = q.data(), r.nonfinite = nonfinite.data();
    n.check(), g.check(), r.check();
    cuda::KernelContext context;
    context.sm_count = 132;
    context.workspace = workspace.data(), context.workspace_bytes = workspace.count();
    if (together) {
      launch_gemm_between(&n, g, &r, context);
    } else {
      launch_rms_norm(n, context);
      launch_gemm(g, context);
      launch_rope_cache(r, context);
    }
    cuda::check(cudaDeviceSynchronize(), "q, k, v");
    if (took != nullptr) *took = cuda::gemm_takes_norm(n, g) || cuda::gemm_takes_rope(g, r);
    for (auto* a : {&normed, &q, &k, &v}) EXPECT_TRUE(a->guards_intact());
    EXPECT_TRUE(nonfinite.guards_intact());
    return {q.get(), k.get(), v.get(), nonfinite.get()};
  }

 private:
  int64_t pages() const { return (s_.m + 3) / kPage + 2; }
  std::vector<float> floats(int64_t count, float deviation, bool hostile) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> v(static_cast<size_t>(count));
    for (float& x : v) {
      x = normal(random_);
      if (hostile && random_() % 4001 == 0) x = numerics::from_bits(static_cast<uint32_t>(random_()));
    }
    return v;
  }

  Shape s_;
  std::mt19937_64 random_;
  std::unique_ptr<GpuArray<float>> x_, norm_, bias_, cos_, sin_;
  std::unique_ptr<GpuArray<uint16_t>> w_;
  std::unique_ptr<GpuArray<int32_t>> rows_, positions_;
  std::unique_ptr<GpuArray<int64_t>> slots_;
  std::unique_ptr<CudaLinear> linear_;
};

TEST(GpuGemmNeighbours, EqualThreeKernels) {
  std::vector<Shape> shapes;
  for (const int64_t m : {1, 2, 3, 8, 16, 17, 40, 64, 65}) {
    for (const int64_t k : {64, 576, 2048, 5120}) shapes.push_back({.m = m, .k = k});
    shapes.push_back({.m = m, .k = 576, .q_heads = 9, .kv_heads = 3, .type = DType::kF16, .bias = true});
    shapes.push_back({.m = m, .k = 1024, .head_dim = 128, .rope_dim = 96, .hostile = true});
    shapes.push_back({.m = m, .k = 1088, .rope_dim = 0, .rows = true});
    shapes.push_back({.m = m, .k = 320, .layout = RopeLayout::kHalves, .hostile = true, .rows = true});
  }
  shapes.push_back({.m = 1, .k = 2048, .q_heads = 32, .kv_heads = 8});
  shapes.push_back({.m = 2, .k = 4096, .q_heads = 32, .kv_heads = 8, .head_dim = 128, .rope_dim = 128});
  shapes.push_back({.m = 1, .k = 8192, .q_heads = 8, .kv_heads = 8, .head_dim = 128, .rope_dim = 128});
  int taken = 0;
  for (const Shape& s : shapes) {
    const uint64_t seed = fresh_seed();
    SCOPED_TRACE(fmt::format("m {} k {} heads {}/{} x {} rope {} layout {} {} hostile {} bias {} rows {} seed {}", s.m,
                             s.k, s.q_heads, s.kv_heads, s.head_dim, s.rope_dim, static_cast<int>(s.layout),
                             dtype_info(s.type).name, s.hostile, s.bias, s.rows, seed));
    Neighbours c(s, seed);
    const Outputs apart = c.run(false);
    bool took = false;
    const Outputs together = c.run(true, &took);
    taken += took ? 1 : 0;
    ASSERT_EQ(together.q, apart.q);
    ASSERT_EQ(together.k, apart.k);
    ASSERT_EQ(together.v, apart.v);
    ASSERT_EQ(together.nonfinite, apart.nonfinite);
  }
  EXPECT_GT(taken, 35);
}

}  // namespace
}  // namespace isobit
