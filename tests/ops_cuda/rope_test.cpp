// Rotation, QK-norm and the cache's write on the GPU against the CPU backend, by bytes.
#include "numerics/rope.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/kernels.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

struct Shape {
  int64_t count = 0;
  int q_heads = 0, kv_heads = 0, head_dim = 0, page_size = 16;
  int rope_dim = 0;  // 0: none
  RopeLayout layout = RopeLayout::kInterleaved;
  bool norm = false, hostile = false;
  DType type = DType::kBF16, cache = DType::kBF16;
};

constexpr int64_t kMaxPosition = 5000;

struct Outputs {
  std::vector<uint16_t> q;
  std::vector<uint8_t> k, v;
  std::vector<int32_t> nonfinite;
  auto operator<=>(const Outputs&) const = default;
};

class RopeCase {
 public:
  RopeCase(const Shape& s, std::mt19937_64& random) : s_(s), pages_(s.count / s.page_size + 5) {
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& v, size_t n) {
      v.resize(n);
      for (float& x : v) x = normal(random);
    };
    fill(qkv_, static_cast<size_t>(s.count) * static_cast<size_t>((s.q_heads + 2 * s.kv_heads) * s.head_dim));
    if (s.hostile) {
      for (float& x : qkv_) {
        const uint64_t r = random();
        if (r % 211 == 0) x = numerics::from_bits(static_cast<uint32_t>(r >> 32));
      }
    }
    fill(q_norm_, static_cast<size_t>(s.head_dim));
    fill(k_norm_, static_cast<size_t>(s.head_dim));
    const int half = s.rope_dim / 2;
    for (int64_t p = 0; p < kMaxPosition && half > 0; p++) {
      for (int i = 0; i < half; i++) {
        const numerics::RopeEntry e = numerics::rope_entry(p, numerics::rope_frequency(i, s.rope_dim, 10000.0), 1.0);
        cos_.push_back(e.cos);
        sin_.push_back(e.sin);
      }
    }
    std::vector<int64_t> free(static_cast<size_t>(pages_ * s.page_size));
    for (size_t i = 0; i < free.size(); i++) free[i] = static_cast<int64_t>(i);
    std::shuffle(free.begin(), free.end(), random);
    for (int64_t t = 0; t < s.count; t++) {
      positions_.push_back(static_cast<int32_t>(random() % kMaxPosition));
      slots_.push_back(random() % 13 == 0 ? -1 : free[static_cast<size_t>(t)]);
    }
    for (int h = 0; h < s.kv_heads; h++) scales_.push_back(std::fabs(normal(random)) * 0.02f + 0.001f);
  }

  size_t cache_bytes() const {
    return static_cast<size_t>(pages_ * s_.page_size) * static_cast<size_t>(s_.kv_heads * s_.head_dim) *
           (s_.cache == DType::kF8E4M3 ? 1 : 2);
  }
  size_t q_elements() const { return static_cast<size_t>(s_.count * s_.q_heads * s_.head_dim); }

  RopeCacheArgs shape_args() const {
    RopeCacheArgs a;
    a.count = s_.count, a.q_heads = s_.q_heads, a.rope_dim = s_.rope_dim, a.max_position = kMaxPosition;
    a.layout = s_.layout, a.type = s_.type;
    a.cache.pages = pages_, a.cache.kv_heads = s_.kv_heads, a.cache.page_size = s_.page_size;
    a.cache.head_dim = s_.head_dim, a.cache.type = s_.cache;
    return a;
  }

  Outputs on_cpu(Backend& cpu) const {
    Outputs o{std::vector<uint16_t>(q_elements(), 0xcdcd), std::vector<uint8_t>(cache_bytes(), 0xcd),
              std::vector<uint8_t>(cache_bytes(), 0xcd), std::vector<int32_t>(slots_.size(), 0)};
    RopeCacheArgs a = shape_args();
    a.qkv = qkv_.data(), a.positions = positions_.data(), a.slots = slots_.data();
    if (s_.rope_dim > 0) a.cos = cos_.data(), a.sin = sin_.data();
    if (s_.norm) a.q_norm = q_norm_.data(), a.k_norm = k_norm_.data();
    if (s_.cache == DType::kF8E4M3) a.cache.k_scale = scales_.data(), a.cache.v_scale = scales_.data();
    a.cache.k = o.k.data(), a.cache.v = o.v.data(), a.q = o.q.data(), a.nonfinite = o.nonfinite.data();
    cpu.rope_cache(a);
    return o;
  }

  Outputs on_gpu() const {
    const GpuArray<float> qkv(qkv_), cos(cos_), sin(sin_), q_norm(q_norm_), k_norm(k_norm_), scales(scales_);
    const GpuArray<int32_t> positions(positions_), nonfinite(std::vector<int32_t>(slots_.size(), 0));
    const GpuArray<int64_t> slots(slots_);
    const GpuArray<uint16_t> q(q_elements());
    const GpuArray<uint8_t> k(cache_bytes()), v(cache_bytes());
    RopeCacheArgs a = shape_args();
    a.qkv = qkv.data(), a.positions = positions.data(), a.slots = slots.data();
    if (s_.rope_dim > 0) a.cos = cos.data(), a.sin = sin.data();
    if (s_.norm) a.q_norm = q_norm.data(), a.k_norm = k_norm.data();
    if (s_.cache == DType::kF8E4M3) a.cache.k_scale = scales.data(), a.cache.v_scale = scales.data();
    a.cache.k = k.data(), a.cache.v = v.data(), a.q = q.data(), a.nonfinite = nonfinite.data();
    a.check();
    cuda::launch_rope_cache(a, {});
    cuda::check(cudaDeviceSynchronize(), "rope_cache");
    EXPECT_TRUE(q.guards_intact() && k.guards_intact() && v.guards_intact() && nonfinite.guards_intact());
    return {q.get(), k.get(), v.get(), nonfinite.get()};
  }

 private:
  Shape s_;
  int64_t pages_;
  std::vector<float> qkv_, cos_, sin_, q_norm_, k_norm_, scales_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> slots_;
};

TEST(GpuRopeCache, EqualsTheCpu) {
  const auto cpu = make_cpu_backend();
  const uint64_t seed = fresh_seed();
  std::mt19937_64 random(seed);
  constexpr int kHeads[][2] = {{9, 3}, {32, 8}, {8, 4}, {1, 1}, {5, 1}};
  for (const int dim : {16, 32, 64, 80, 96, 128, 256, 512, 1024}) {
    for (int variant = 0; variant < 12; variant++) {
      Shape s;
      s.count = variant == 0 ? 1 : 1 + static_cast<int64_t>(random() % 170);
      s.q_heads = kHeads[variant % 5][0], s.kv_heads = kHeads[variant % 5][1];
      s.head_dim = dim;
      s.page_size = variant % 3 == 0 ? 1 : variant % 3 == 1 ? 16 : 48;
      s.rope_dim = variant % 4 == 3 ? 0 : variant % 4 == 2 ? dim / 2 : dim;
      s.layout = variant % 2 == 0 ? RopeLayout::kInterleaved : RopeLayout::kHalves;
      s.norm = random() % 2 == 0;
      s.hostile = random() % 2 == 0;
      s.type = variant % 5 == 4 ? DType::kF16 : DType::kBF16;
      s.cache = variant % 6 == 5 ? DType::kF8E4M3 : s.type;
      SCOPED_TRACE(fmt::format("seed {} dim {} variant {} count {} rope_dim {} norm {} hostile {}", seed, dim, variant,
                               s.count, s.rope_dim, s.norm, s.hostile));
      const RopeCase c(s, random);
      const Outputs want = c.on_cpu(*cpu), got = c.on_gpu();
      EXPECT_TRUE(got.q == want.q) << "q";
      EXPECT_TRUE(got.k == want.k) << "k";
      EXPECT_TRUE(got.v == want.v) << "v";
      EXPECT_EQ(got.nonfinite, want.nonfinite);
    }
  }
}

}  // namespace
}  // namespace isobit
