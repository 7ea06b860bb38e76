// The block-scaled FP8 GEMM on the GPU against rule N16 by bytes.
#include "ops/cuda/gemm_fp8.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

#include "numerics/gemm.h"
#include "ops/cuda/gemm_fp8_thin.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

constexpr int kSmCount = 132;

enum class Values {
  kQuantised,  // as quantisation leaves them: a bell with its largest at 448
  kAnyFinite,  // any bits but NaN
  kAnything,   // NaN one in 2000, scales zero, subnormal, huge, negative, infinite or NaN among them
};

struct Problem {
  int64_t m = 0, n = 0, k = 0;
  DType out = DType::kBF16;
  Values values = Values::kAnyFinite;
  uint64_t seed = fresh_seed();

  std::string text() const {
    return fmt::format("m {} n {} k {} out {} values {} seed {}", m, n, k, dtype_info(out).name,
                       static_cast<int>(values), seed);
  }
};

uint8_t draw_value(uint64_t r, Values values) {
  if (values == Values::kQuantised) {
    const int sum = static_cast<int>(r & 255) + static_cast<int>((r >> 8) & 255) + static_cast<int>((r >> 16) & 255);
    return numerics::f32_to_e4m3(static_cast<float>(sum - 382) * (448.0f / 382.0f));
  }
  const auto b = static_cast<uint8_t>(r);
  if ((b & 0x7f) != 0x7f) return b;
  return values == Values::kAnything && (r >> 8) % 8 == 0 ? b : static_cast<uint8_t>(b & 0x80);
}

float draw_scale(uint64_t r, Values values) {
  const float plain = numerics::from_bits(0x3b000000 + static_cast<uint32_t>(r & 0xffffff));  // from 2^-9 on
  if (values != Values::kAnything) return plain;
  switch ((r >> 24) % 64) {
    case 0:
      return 0.0f;
    case 1:
      return numerics::from_bits(static_cast<uint32_t>(r >> 32) & 0x807fffff);  // subnormal
    case 2:
      return numerics::from_bits(0x7e000000 | (static_cast<uint32_t>(r >> 32) & 0x80ffffff));  // huge
    case 3:
      return numerics::from_bits(0x00800000 | (static_cast<uint32_t>(r >> 32) & 0x80ffffff));  // tiny
    case 4:
      if ((r >> 40) % 64 == 0) return numerics::from_bits(numerics::kInf32);
      if ((r >> 40) % 64 == 1) return numerics::from_bits(numerics::kNaN32);
      return -plain;
    default:
      return plain;
  }
}

// Calls body(i) for i in [0, count) on all cores.
template <typename Body>
void parallel(int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); t++) {
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) body(i);
    });
  }
  for (std::thread& t : threads) t.join();
}

std::vector<uint8_t> draw_matrix(int64_t rows, int64_t stored, int64_t k, Values values, uint64_t seed) {
  const int64_t row = fp8_row_bytes(k);
  std::vector<uint8_t> v(static_cast<size_t>(stored * row), 0);
  parallel(stored, [&](int64_t r) {
    std::mt19937_64 rng(seed * 0x9e3779b97f4a7c15ULL + static_cast<uint64_t>(r));
    for (int64_t i = 0; i < (r < rows ? k : row); i++) {  // rows past the last are free to hold anything
      v[static_cast<size_t>(r * row + i)] = r < rows ? draw_value(rng(), values) : uint8_t{0x7f};
    }
  });
  return v;
}

class Fixture {
 public:
  explicit Fixture(const Problem& p)
      : p_(p),
        blocks_(fp8_blocks(p.k)),
        stride_(fp8_scale_stride(p.m)),
        x_(draw_matrix(p.m, p.m, p.k, p.values, p.seed)),
        w_(draw_matrix(p.n, fp8_stored_rows(p.n), p.k, p.values, p.seed + 1)),
        x_scale_(static_cast<size_t>(blocks_ * stride_)),
        w_scale_(static_cast<size_t>(fp8_blocks(p.n) * blocks_)) {
    std::mt19937_64 rng(p.seed + 2);
    for (float& s : x_scale_) s = draw_scale(rng(), p.values);
    for (float& s : w_scale_) s = draw_scale(rng(), p.values);
    upload();
    out_ = std::make_unique<GpuArray<uint8_t>>(static_cast<size_t>(p.m * p.n) * bytes());
  }

  std::vector<uint8_t>& x() { return x_; }
  std::vector<float>& x_scale() { return x_scale_; }
  void upload() {
    gpu_x_ = std::make_unique<GpuArray<uint8_t>>(x_);
    gpu_w_ = std::make_unique<GpuArray<uint8_t>>(w_);
    gpu_x_scale_ = std::make_unique<GpuArray<float>>(x_scale_);
    gpu_w_scale_ = std::make_unique<GpuArray<float>>(w_scale_);
  }
  size_t bytes() const { return p_.out == DType::kF32 ? 4 : 2; }

  using Launch = std::function<void(const GemmFp8Args&, const cuda::KernelContext&)>;
  static Launch planned(const cuda::GemmFp8Plan& plan) {
    return [plan](const GemmFp8Args& a, const cuda::KernelContext& c) { launch_gemm_fp8_planned(a, plan, c); };
  }
  static Launch planned(const cuda::GemmFp8ThinPlan& plan) {
    return [plan](const GemmFp8Args& a, const cuda::KernelContext& c) { launch_gemm_fp8_thin_planned(a, plan, c); };
  }

  // Output bytes of rows [first_row, first_row + rows), by the operator's own choice of plan or another's.
  std::vector<uint8_t> run(const Launch& launch = cuda::launch_gemm_fp8, int64_t first_row = 0, int64_t rows = -1) {
    if (rows < 0) rows = p_.m;
    out_->poison();
    GemmFp8Args a;
    a.x = gpu_x_->data() + first_row * fp8_row_bytes(p_.k);
    a.x_scale = gpu_x_scale_->data();
    a.m = rows;
    a.x_scale_stride = stride_;
    // A row that does not stand at 16 bytes in the scales: a copy of the scales that begins with it.
    std::unique_ptr<GpuArray<float>> moved;
    if (first_row % 4 != 0) {
      std::vector<float> s(x_scale_.begin() + first_row, x_scale_.end());
      s.resize(x_scale_.size(), 0.0f);
      moved = std::make_unique<GpuArray<float>>(s);
      a.x_scale = moved->data();
    } else {
      a.x_scale += first_row;
    }
    a.w = gpu_w_->data();
    a.w_scale = gpu_w_scale_->data();
    a.n = p_.n;
    a.k = p_.k;
    a.out_type = p_.out;
    a.out = out_->data();
    a.check();
    cuda::KernelContext context;
    context.sm_count = kSmCount;
    launch(a, context);
    cuda::check(cudaDeviceSynchronize(), "gemm_fp8");
    EXPECT_TRUE(out_->guards_intact()) << p_.text();
    std::vector<uint8_t> got = out_->get();
    const size_t used = static_cast<size_t>(rows * p_.n) * bytes();
    EXPECT_TRUE(std::all_of(got.begin() + static_cast<int64_t>(used), got.end(), [](uint8_t b) { return b == 0xcd; }))
        << "wrote behind its rows: " << p_.text();
    got.resize(used);
    return got;
  }

  uint32_t expected(int64_t row, int64_t n) const {
    const int64_t stored = fp8_row_bytes(p_.k);
    std::vector<float> scales(static_cast<size_t>(blocks_));
    for (int64_t b = 0; b < blocks_; b++) {
      scales[static_cast<size_t>(b)] = x_scale_[static_cast<size_t>(b * stride_ + row)];
    }
    const float v = numerics::gemm_fp8_dot(&x_[static_cast<size_t>(row * stored)], &w_[static_cast<size_t>(n * stored)],
                                           scales.data(), &w_scale_[static_cast<size_t>(n / 128 * blocks_)], p_.k);
    if (p_.out == DType::kF32) return numerics::bits(numerics::canonical(v));
    return p_.out == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
  }

  // Sampled outputs, the corners among them, against the scalar rule; how many.
  int64_t compare(const std::vector<uint8_t>& got_bytes, int64_t samples) {
    const int64_t total = p_.m * p_.n;
    samples = std::min(samples, total);
    std::atomic<int64_t> wrong{0};
    parallel(samples, [&](int64_t i) {
      std::mt19937_64 rng(p_.seed + 100 + static_cast<uint64_t>(i));
      const int64_t corners[] = {0, p_.n - 1, total - p_.n, total - 1};
      const int64_t at = samples == total ? i : i < 4 ? corners[i] : static_cast<int64_t>(rng() % total);
      const uint32_t want = expected(at / p_.n, at % p_.n);
      uint32_t got = 0;
      std::memcpy(&got, &got_bytes[static_cast<size_t>(at) * bytes()], bytes());
      if (got != want && wrong++ == 0) {
        ADD_FAILURE() << fmt::format("({}, {}): {:08x}, the rule gives {:08x}; {}", at / p_.n, at % p_.n, got, want,
                                     p_.text());
      }
    });
    EXPECT_EQ(wrong, 0) << "of " << samples << "; " << p_.text();
    return samples;
  }

  int64_t check(int64_t samples) {
    SCOPED_TRACE(p_.text());
    return compare(run(), samples);
  }

 private:
  Problem p_;
  int64_t blocks_, stride_;
  std::vector<uint8_t> x_, w_;
  std::vector<float> x_scale_, w_scale_;
  std::unique_ptr<GpuArray<uint8_t>> gpu_x_, gpu_w_, out_;
  std::unique_ptr<GpuArray<float>> gpu_x_scale_, gpu_w_scale_;
};

TEST(GpuGemmFp8, EveryTileGivesTheSameBits) {
  struct Case {
    int64_t m, n, k;
    DType out;
  };
  constexpr Case kCases[] = {{1, 1000, 1088, DType::kF32},   {50, 330, 4200, DType::kBF16},
                             {200, 2112, 640, DType::kF16},  {700, 901, 512, DType::kBF16},
                             {2500, 1304, 384, DType::kF32}, {37, 520, 100, DType::kF16}};
  for (const Case& c : kCases) {
    const Problem p{.m = c.m, .n = c.n, .k = c.k, .out = c.out};
    SCOPED_TRACE(p.text());
    Fixture f(p);
    const std::vector<uint8_t> reference = f.run();
    f.compare(reference, 2000);
    const cuda::GemmFp8Shape shape{c.m, c.n, c.k};
    int plans = 0;
    for (int i = 0; i < cuda::kGemmFp8TileCount; i++) {
      for (const int cluster : {1, 2, 4}) {
        const int most = cuda::gemm_fp8_tile_m(shape, i, cluster);
        for (const int tile_m : {most, most / 2 / 8 * 8}) {
          if (!cuda::gemm_fp8_fits(shape, i, cluster, tile_m)) continue;
          for (const int sms : {kSmCount, 8}) {  // few CTAs: each walks many tiles
            for (const bool staged : {false, true}) {
              if (staged && !cuda::gemm_fp8_can_stage(i, tile_m)) continue;
              const int shared = (sms == 8 && !staged ? 110 : 225) * 1024;
              const cuda::GemmFp8Plan plan = gemm_fp8_plan_for(shape, i, cluster, tile_m, sms, shared, staged);
              const cuda::GemmFp8Tile& t = plan.tile();
              ASSERT_EQ(f.run(Fixture::planned(plan)) == reference, true)
                  << fmt::format("tile {}x{} of {} rows, cluster {} on {} SMs, {} stages, staged {}", t.warpgroups * 64,
                                 t.tile_n, tile_m, cluster, sms, plan.stages, staged);
              plans++;
            }
          }
        }
      }
    }
    EXPECT_GT(plans, 10);
  }
}

// The kernel of few rows: K in one CTA, walked over several tiles, and in clusters.
TEST(GpuGemmFp8, EveryThinPlanGivesTheTilesBits) {
  struct Case {
    int64_t m, n, k;
    DType out;
  };
  constexpr Case kCases[] = {{1, 1000, 1088, DType::kF32},  {8, 330, 4200, DType::kBF16}, {3, 70, 16384, DType::kF16},
                             {5, 130, 128, DType::kBF16},   {1, 64, 14336, DType::kBF16}, {2, 520, 100, DType::kF16},
                             {7, 20000, 300, DType::kBF16}, {4, 576, 1536, DType::kF32}};
  for (const Case& c : kCases) {
    const Problem p{.m = c.m, .n = c.n, .k = c.k, .out = c.out, .values = Values::kAnything};
    SCOPED_TRACE(p.text());
    Fixture f(p);
    const cuda::GemmFp8Shape shape{c.m, c.n, c.k};
    const std::vector<uint8_t> reference =
        f.run(Fixture::planned(cuda::gemm_fp8_plan_for(shape, 1, 1, 8, kSmCount, 225 * 1024)));
    f.compare(reference, 500);
    int plans = 0;
    for (const int cluster : {1, 2, 4, 8}) {
      for (const int resident : {1, 2, 3}) {
        for (const int sms : {kSmCount, 3}) {  // few CTAs: each walks many tiles
          const cuda::GemmFp8ThinPlan plan = gemm_fp8_thin_plan_for(shape, cluster, resident, sms);
          if (plan.stages == 0) continue;
          ASSERT_EQ(f.run(Fixture::planned(plan)) == reference, true)
              << fmt::format("cluster {}, {} a SM, {} CTAs of {} stages", cluster, resident, plan.ctas, plan.stages);
          plans++;
        }
      }
    }
    EXPECT_GT(plans, 3);
  }
}

TEST(GpuGemmFp8, RandomShapesAndValues) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 rng(seed);
  const auto log_uniform = [&](double most) {
    return static_cast<int64_t>(std::exp(std::uniform_real_distribution<>(0, std::log(most))(rng)));
  };
  constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};
  int64_t cases = 0;
  for (int i = 0; cases < 1'000'000; i++) {  // every third of few rows, which have a kernel of their own
    cases += Fixture(Problem{.m = log_uniform(i % 3 == 0 ? 8 : 600),
                             .n = log_uniform(1200),
                             .k = log_uniform(1500),
                             .out = kTypes[i / 3 % 3],
                             .values = static_cast<Values>(rng() % 3)})
                 .check(8000);
  }
  RecordProperty("cases", static_cast<int>(cases));
}

TEST(GpuGemmFp8, ModelShapes) {
  for (const auto& [n, k] :
       {std::pair{2112, 7168}, {24576, 1536}, {32768, 512}, {7168, 16384}, {4096, 7168}, {7168, 2048}, {576, 576}}) {
    for (const int m : {1, 64, 130, 1000}) {
      if (m == 1000 && n * int64_t{k} > 40'000'000) continue;
      Fixture(Problem{.m = m, .n = n, .k = k, .values = Values::kQuantised}).check(500);
    }
  }
}

TEST(GpuGemmFp8, ARowDoesNotDependOnM) {
  for (const auto& [n, type] : {std::pair{520, DType::kBF16}, {2112, DType::kBF16}, {520, DType::kF16}}) {
    const Problem p{.m = 300, .n = n, .k = 2304, .out = type};
    SCOPED_TRACE(p.text());
    Fixture f(p);
    const std::vector<uint8_t> all = f.run();
    f.compare(all, 1000);
    const size_t row = static_cast<size_t>(n) * 2;
    for (int64_t r = 0; r < p.m; r++) {
      const std::vector<uint8_t> one = f.run(cuda::launch_gemm_fp8, r, 1);
      ASSERT_EQ(std::memcmp(one.data(), &all[static_cast<size_t>(r) * row], row), 0) << "row " << r << " alone";
    }
    for (int64_t m = 1; m < p.m; m++) {
      const std::vector<uint8_t> some = f.run(cuda::launch_gemm_fp8, 0, m);
      ASSERT_EQ(std::memcmp(some.data(), all.data(), some.size()), 0) << "first " << m << " rows";
    }
  }
}

TEST(GpuGemmFp8, LargeShapesRepeat) {
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const auto& [m, n, k] : {std::tuple{1024, 1024, 4096}, {2048, 2048, 2048}}) {
      Fixture f(Problem{.m = m, .n = n, .k = k, .out = type, .values = Values::kQuantised});
      const std::vector<uint8_t> first = f.run();
      f.compare(first, 500);
      for (int i = 0; i < 100; i++) ASSERT_EQ(f.run() == first, true) << "run " << i;
    }
  }
}

TEST(GpuGemmFp8, NanAndInfinityStayInTheirRow) {
  for (const int64_t m : {9, 65, 300}) {
    const Problem p{.m = m, .n = 264, .k = 700};
    Fixture f(p);
    const std::vector<uint8_t> clean = f.run();
    const auto row = static_cast<size_t>(m / 2);
    f.x()[row * static_cast<size_t>(fp8_row_bytes(p.k)) + 5] = 0x7f;
    f.x_scale()[static_cast<size_t>(fp8_scale_stride(m)) + row - 1] = numerics::from_bits(numerics::kInf32);
    f.upload();
    const std::vector<uint8_t> got = f.run();
    f.compare(got, 4000);
    const size_t bytes = static_cast<size_t>(p.n) * 2;
    for (size_t r = 0; r < static_cast<size_t>(m); r++) {
      const bool same = std::memcmp(&got[r * bytes], &clean[r * bytes], bytes) == 0;
      EXPECT_EQ(same, r != row && r != row - 1) << "row " << r;
    }
  }
}

}  // namespace
}  // namespace isobit
