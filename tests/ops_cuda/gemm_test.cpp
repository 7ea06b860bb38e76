// The GEMM kernels against rule N7 by bytes.
#include "numerics/gemm.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "numerics/activation.h"
#include "ops/cuda/gemm.h"
#include "ops/cuda/linear_cuda.h"
#include "ops_cuda/gpu_memory.h"
#include "ops_cuda/place_row.h"

namespace isobit {
namespace {

using cuda::CudaLinear;
using numerics::Operand;

constexpr int kSmCount = 132;

enum class Values {
  kNormal,       // as a model has them
  kSpread,       // exponents over 40 powers of two: alignment drops bits in every step
  kAdversarial,  // zeros, subnormals, huge, infinities and NaN among them
};

// One value from 64 random bits.
uint16_t draw_one(uint64_t r, Values values, DType type) {
  const bool bf16 = type == DType::kBF16;
  const auto round = bf16 ? numerics::f32_to_bf16 : numerics::f32_to_f16;
  const float u = static_cast<float>(static_cast<int64_t>(r >> 40) - (1 << 23)) / static_cast<float>(1 << 22);
  if (values == Values::kNormal) return round(u);
  if (values == Values::kSpread) {
    const int exponent = static_cast<int>(r & 0xff) % (bf16 ? 40 : 16) - (bf16 ? 20 : 12);
    return round(u * numerics::from_bits(static_cast<uint32_t>(exponent + 127) << 23));
  }
  // Any bits at all; infinities and NaN one in 2^17 or so, that finite outputs remain.
  const auto x = static_cast<uint16_t>(r >> 16);
  const uint16_t exponent_mask = bf16 ? 0x7f80 : 0x7c00;
  if ((x & exponent_mask) != exponent_mask || (r & 0x3ff) == 0) return x;
  return static_cast<uint16_t>(x & ~(exponent_mask & (exponent_mask >> 2)));
}

std::vector<uint16_t> draw(size_t count, Values values, DType type, uint64_t seed) {
  std::vector<uint16_t> v(count);
  constexpr size_t kBlock = size_t{1} << 16;
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); t++) {
    threads.emplace_back([&] {
      for (size_t first = kBlock * next++; first < count; first = kBlock * next++) {
        std::mt19937_64 rng(seed * 0x9e3779b97f4a7c15ULL + first);
        for (size_t i = first; i < std::min(count, first + kBlock); i++) v[i] = draw_one(rng(), values, type);
      }
    });
  }
  for (std::thread& t : threads) t.join();
  return v;
}

struct Problem {
  int64_t m = 0, n = 0, k = 0;  // n: outputs; a gated pair has 2n rows
  Epilogue epilogue = Epilogue::kStoreF32;
  DType type = DType::kBF16;
  bool bias = false;
  Values values = Values::kNormal;
  uint64_t seed = fresh_seed();

  bool gated() const { return epilogue == Epilogue::kSiluMul || epilogue == Epilogue::kGeluMul; }
  bool wide() const { return epilogue == Epilogue::kStoreF32 || epilogue == Epilogue::kAddResidual; }
  int64_t rows() const { return gated() ? 2 * n : n; }
  std::string text() const {
    return fmt::format("m {} n {} k {} epilogue {} {} bias {} values {} seed {}", m, n, k, static_cast<int>(epilogue),
                       type == DType::kBF16 ? "bf16" : "f16", bias, static_cast<int>(values), seed);
  }
};

// The operands on both sides and the weights in the GPU's layout.
class Fixture {
 public:
  explicit Fixture(const Problem& p)
      : p_(p),
        x_(draw(static_cast<size_t>(p.m * p.k), p.values, p.type, p.seed)),
        w_(draw(static_cast<size_t>(p.rows() * p.k), p.values, p.type, p.seed + 1)),
        gpu_x_(x_),
        out_(static_cast<size_t>(p.m * p.n * (p.wide() ? 4 : 2))),
        workspace_(size_t{8} << 20) {
    std::mt19937_64 rng(p.seed + 2);
    std::normal_distribution<float> normal;
    if (p.bias) {
      bias_.resize(static_cast<size_t>(p.n));
      for (float& b : bias_) b = normal(rng);
      gpu_bias_ = std::make_unique<GpuArray<float>>(bias_);
    }
    if (p.epilogue == Epilogue::kAddResidual) {
      residual_.resize(static_cast<size_t>(p.m * p.n));
      for (float& r : residual_) r = normal(rng);
    }
    const LinearForm form = p.gated() ? LinearForm::kGated : LinearForm::kStacked;
    const int64_t stored = CudaLinear::stored_rows(p.rows(), form), row = CudaLinear::padded_k(p.k);
    std::vector<uint16_t> packed(static_cast<size_t>(stored * row), 0);
    for (int64_t r = 0; r < p.rows(); r++) {
      const int64_t up = r >= p.n ? 1 : 0, i = r - up * p.n;
      const int64_t to = p.gated() ? i / 8 * 16 + up * 8 + i % 8 : r;
      place_row(packed, stored, to, &w_[static_cast<size_t>(r * p.k)], p.k);
    }
    gpu_w_ = std::make_unique<GpuArray<uint16_t>>(packed);
    const std::shared_ptr<void> view(gpu_w_->data(), [](void*) {});
    linear_ = std::make_unique<CudaLinear>(p.rows(), p.k, form, p.type, Buffer(view, packed.size() * 2));
  }

  GemmArgs args(int64_t first_row, int64_t rows) {
    GemmArgs a;
    a.x = gpu_x_.data() + first_row * p_.k;
    a.m = rows;
    a.w = linear_.get();
    a.bias = p_.bias ? gpu_bias_->data() : nullptr;
    a.epilogue = p_.epilogue;
    a.type = p_.type;
    a.out = out_.data();
    return a;
  }

  // Output bytes of rows [first_row, first_row + rows). plan null: the operator's own choice.
  std::vector<uint8_t> run(const cuda::GemmPlan* plan = nullptr, int64_t first_row = 0, int64_t rows = -1) {
    if (rows < 0) rows = p_.m;
    out_.poison();
    const size_t count = static_cast<size_t>(rows * p_.n);
    if (!residual_.empty()) {
      cuda::check(cudaMemcpy(out_.data(), residual_.data() + first_row * p_.n, count * 4, cudaMemcpyHostToDevice),
                  "residual");
    }
    const GemmArgs a = args(first_row, rows);
    a.check();
    cuda::KernelContext context;
    context.sm_count = kSmCount;
    context.workspace = workspace_.data();
    context.workspace_bytes = workspace_.count();
    if (plan != nullptr) {
      launch_gemm_planned(a, *plan, context);
    } else {
      launch_gemm(a, context);
    }
    cuda::check(cudaDeviceSynchronize(), "gemm");
    EXPECT_TRUE(out_.guards_intact()) << p_.text();
    std::vector<uint8_t> bytes = out_.get();
    const size_t used = count * (p_.wide() ? 4 : 2);
    for (size_t i = used; i < bytes.size(); i++) {
      if (bytes[i] != 0xcd) {
        ADD_FAILURE() << "wrote behind its rows: " << p_.text();
        break;
      }
    }
    bytes.resize(used);
    return bytes;
  }

  cuda::GemmShape shape() { return cuda::gemm_shape(args(0, p_.m)); }

  float chain(int64_t row, int64_t n) const {
    const int64_t chunk = numerics::gemm_chunk_k(p_.rows(), p_.k);
    const uint16_t *x = &x_[static_cast<size_t>(row * p_.k)], *w = &w_[static_cast<size_t>(n * p_.k)];
    return p_.type == DType::kBF16 ? numerics::gemm_dot<Operand::kBF16>(x, w, p_.k, chunk)
                                   : numerics::gemm_dot<Operand::kF16>(x, w, p_.k, chunk);
  }

  uint32_t expected(int64_t row, int64_t n) const {
    float v = chain(row, n);
    if (p_.bias) v = numerics::fadd(v, bias_[static_cast<size_t>(n)]);
    if (p_.gated()) {
      const float act = p_.epilogue == Epilogue::kSiluMul ? numerics::silu(v) : numerics::gelu_tanh(v);
      v = numerics::fmul(act, chain(row, n + p_.n));
    }
    if (p_.epilogue == Epilogue::kAddResidual) {
      v = numerics::fadd(residual_[static_cast<size_t>(row * p_.n + n)], v);
    }
    if (p_.wide()) return numerics::bits(numerics::canonical(v));
    return p_.type == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
  }

  // Sampled outputs, the corners among them, against the scalar rule.
  void compare(const std::vector<uint8_t>& bytes, int64_t samples) {
    const int64_t total = p_.m * p_.n;
    samples = std::min(samples, total);
    std::atomic<int64_t> wrong{0}, next{0};
    std::vector<std::thread> threads;
    const unsigned workers = std::max(1u, std::thread::hardware_concurrency());
    for (unsigned t = 0; t < workers; t++) {
      threads.emplace_back([&] {
        for (int64_t i = next++; i < samples; i = next++) {
          std::mt19937_64 rng(p_.seed + 100 + static_cast<uint64_t>(i));
          const int64_t corners[] = {0, p_.n - 1, total - p_.n, total - 1};
          const int64_t at = samples == total ? i : i < 4 ? corners[i] : static_cast<int64_t>(rng() % total);
          const uint32_t want = expected(at / p_.n, at % p_.n);
          uint32_t got = 0;
          std::memcpy(&got, &bytes[static_cast<size_t>(at) * (p_.wide() ? 4 : 2)], p_.wide() ? 4 : 2);
          if (got != want && wrong++ == 0) {
            ADD_FAILURE() << fmt::format("({}, {}): {:08x}, the rule gives {:08x}; {}", at / p_.n, at % p_.n, got, want,
                                         p_.text());
          }
        }
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(wrong, 0) << "of " << samples << "; " << p_.text();
  }

  void check(int64_t samples) {
    SCOPED_TRACE(p_.text());
    compare(run(), samples);
  }

 private:
  Problem p_;
  std::vector<uint16_t> x_, w_;
  std::vector<float> bias_, residual_;
  GpuArray<uint16_t> gpu_x_;
  GpuArray<uint8_t> out_;
  GpuArray<uint8_t> workspace_;
  std::unique_ptr<GpuArray<uint16_t>> gpu_w_;
  std::unique_ptr<GpuArray<float>> gpu_bias_;
  std::unique_ptr<CudaLinear> linear_;
};

constexpr Epilogue kEpilogues[] = {Epilogue::kStoreF32, Epilogue::kStoreRounded, Epilogue::kAddResidual,
                                   Epilogue::kSiluMul, Epilogue::kGeluMul};

TEST(GpuGemm, EveryEpilogueAndTypeOnRaggedShapes) {
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const Epilogue e : kEpilogues) {
      for (const bool bias : {false, true}) {
        Problem p{.m = 37, .n = 203, .k = 333, .epilogue = e, .type = type, .bias = bias, .values = Values::kSpread};
        if (bias && p.gated()) continue;
        Fixture(p).check(4000);
        Problem even = p;
        even.m = 150, even.n = 328, even.k = 576;
        Fixture(even).check(4000);
      }
    }
  }
}

TEST(GpuGemm, ModelShapes) {
  struct Shape {
    int64_t n, k;
  };
  constexpr Shape kShapes[] = {{960, 576},  {576, 576},     {576, 1536},  {49152, 576},  {3072, 2048}, {2048, 8192},
                               {896, 4864}, {128256, 2048}, {6144, 4096}, {4096, 14336}, {4096, 4096}};
  for (const Shape s : kShapes) {
    for (const int64_t m : {1, 17, 300}) {
      Fixture(Problem{.m = m, .n = s.n, .k = s.k, .values = Values::kSpread}).check(1200);
    }
  }
  for (const int64_t m : {1, 64, 513}) {
    Fixture(Problem{.m = m, .n = 1536, .k = 576, .epilogue = Epilogue::kSiluMul}).check(1500);
    Fixture(Problem{.m = m, .n = 8192, .k = 2048, .epilogue = Epilogue::kSiluMul}).check(1000);
  }
}

TEST(GpuGemm, AdversarialValues) {
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const int64_t m : {3, 129}) {
      for (const Epilogue e : kEpilogues) {
        Fixture(Problem{.m = m, .n = 264, .k = 208, .epilogue = e, .type = type, .values = Values::kAdversarial})
            .check(20000);
      }
    }
    Fixture(Problem{.m = 65, .n = 96, .k = 5000, .type = type, .values = Values::kAdversarial}).check(3000);
  }
}

TEST(GpuGemm, SmallestSizes) {
  for (const int64_t m : {1, 2}) {
    for (const int64_t n : {1, 2, 7, 8, 9}) {
      for (const int64_t k : {1, 7, 8, 16, 63, 64, 65}) {
        Fixture(Problem{.m = m, .n = n, .k = k, .values = Values::kSpread}).check(100);
        Fixture(Problem{.m = m, .n = n, .k = k, .epilogue = Epilogue::kSiluMul}).check(100);
      }
    }
  }
}

TEST(GpuGemm, ARowDoesNotDependOnM) {
  for (const int64_t n : {520, 1544}) {
    Problem p{.m = 300, .n = n, .k = 2304, .values = Values::kSpread};
    SCOPED_TRACE(p.text());
    Fixture f(p);
    const std::vector<uint8_t> all = f.run();
    f.compare(all, 2000);
    const size_t row = static_cast<size_t>(n) * 4;
    for (int64_t r = 0; r < p.m; r++) {
      const std::vector<uint8_t> one = f.run(nullptr, r, 1);
      ASSERT_EQ(std::memcmp(one.data(), &all[static_cast<size_t>(r) * row], row), 0) << "row " << r << " alone";
    }
    for (int64_t m = 1; m < p.m; m++) {
      const std::vector<uint8_t> some = f.run(nullptr, 0, m);
      ASSERT_EQ(std::memcmp(some.data(), all.data(), some.size()), 0) << "first " << m << " rows";
    }
  }
}

TEST(GpuGemm, EveryTileGivesTheSameBits) {
  struct Case {
    int64_t m, n, k;
    Epilogue epilogue;
  };
  constexpr Case kCases[] = {{1, 1000, 1088, Epilogue::kStoreF32},      {50, 328, 4160, Epilogue::kStoreF32},
                             {200, 2056, 640, Epilogue::kStoreRounded}, {700, 900, 576, Epilogue::kSiluMul},
                             {2500, 1304, 320, Epilogue::kAddResidual}, {300, 1000, 4096, Epilogue::kStoreF32},
                             {80, 520, 1088, Epilogue::kAddResidual}};
  constexpr int kClusters[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}};
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const Case& c : kCases) {
      Problem p{.m = c.m, .n = c.n, .k = c.k, .epilogue = c.epilogue, .type = type, .values = Values::kSpread};
      SCOPED_TRACE(p.text());
      Fixture f(p);
      const std::vector<uint8_t> reference = f.run();
      f.compare(reference, 2000);
      int plans = 0;
      for (const cuda::GemmTile& t : cuda::gemm_tiles()) {
        for (const auto& [cm, cn] : kClusters) {
          if (!gemm_tile_fits(f.shape(), t, cm, cn)) continue;
          for (const int sms : {kSmCount, 8}) {  // few CTAs: each walks many tiles
            const cuda::GemmPlan plan = gemm_plan_for(f.shape(), t, cm, cn, sms);
            ASSERT_EQ(f.run(&plan), reference) << fmt::format("tile {}x{} slices {} cluster {}x{} on {} SMs",
                                                              t.warpgroups * 64, t.tile_n, t.slices, cm, cn, sms);
            plans++;
          }
        }
      }
      EXPECT_GT(plans, 10);
    }
  }
}

TEST(GpuGemm, RepeatedRunsAreEqual) {
  Fixture f(Problem{.m = 2048, .n = 2048, .k = 2048, .epilogue = Epilogue::kStoreRounded});
  const std::vector<uint8_t> first = f.run();
  f.compare(first, 1000);
  for (int i = 0; i < 20; i++) ASSERT_EQ(f.run(), first) << "run " << i;
}

}  // namespace
}  // namespace isobit
