// Rows gemm_fp8, and its grouped forms. With ISOBIT_GEMM_SWEEP set, every tile and cluster that fits is timed and
// printed to stderr.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gpu_bench.h"
#include "numerics/convert.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops/cuda/gemm_fp8_thin.h"

namespace isobit::bench {
namespace {

using cuda::GemmFp8Plan;

constexpr int kSmCount = 132;

// Quantised bell-shaped values, the same few million over and over.
std::vector<uint8_t> bell(size_t count) {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal(0.0f, 120.0f);
  std::vector<uint8_t> v(count);
  for (uint8_t& b : v) b = numerics::f32_to_e4m3(normal(rng));
  return v;
}

std::unique_ptr<DeviceBuffer> filled_fp8(const std::vector<uint8_t>& values, size_t bytes) {
  auto buffer = std::make_unique<DeviceBuffer>(bytes);
  for (size_t at = 0; at < bytes; at += values.size()) {
    cuda::check(cudaMemcpy(buffer->data<uint8_t>() + at, values.data(), std::min(values.size(), bytes - at),
                           cudaMemcpyHostToDevice),
                "fill");
  }
  return buffer;
}

std::unique_ptr<DeviceBuffer> random_scales(size_t count) {
  std::vector<float> v(count);
  std::mt19937_64 rng(2);
  std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
  for (float& s : v) s = uniform(rng) / 448.0f;
  auto buffer = std::make_unique<DeviceBuffer>(count * 4);
  cuda::check(cudaMemcpy(buffer->data(), v.data(), count * 4, cudaMemcpyHostToDevice), "fill");
  return buffer;
}

class GemmFp8Bench {
 public:
  GemmFp8Bench(int64_t m, int64_t n, int64_t k) : m_(m), n_(n), k_(k), out_(static_cast<size_t>(m * n) * 2) {
    static const std::vector<uint8_t> values = bell((size_t{1} << 22) + 12345);
    x_ = filled_fp8(values, static_cast<size_t>(m * fp8_row_bytes(k)));
    x_scale_ = random_scales(static_cast<size_t>(fp8_blocks(k) * fp8_scale_stride(m)));
    w_scale_ = random_scales(static_cast<size_t>(fp8_blocks(k) * fp8_blocks(n)));
    out_.poison();
    const auto bytes = static_cast<size_t>(fp8_stored_rows(n) * fp8_row_bytes(k));
    const int copies = m >= 1024 ? 2 : rotated_copies(bytes);
    for (int i = 0; i < copies; i++) weights_.push_back(filled_fp8(values, bytes));
  }

  // Seconds of many rows make the clocks fall; a pause makes cases independent of those before them (the peers pause
  // too).
  void rest() const {
    if (m_ >= 1024) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }

  using Launch = std::function<void(const GemmFp8Args&, const cuda::KernelContext&)>;
  double run(const Launch& launch = cuda::launch_gemm_fp8) {
    return graph_us(static_cast<int>(weights_.size()), [&](int i, cudaStream_t stream) {
      GemmFp8Args a;
      a.x = x_->data<uint8_t>();
      a.x_scale = x_scale_->data<float>();
      a.m = m_;
      a.x_scale_stride = fp8_scale_stride(m_);
      a.w = weights_[static_cast<size_t>(i)]->data<uint8_t>();
      a.w_scale = w_scale_->data<float>();
      a.n = n_;
      a.k = k_;
      a.out = out_.data();
      cuda::KernelContext context;
      context.stream = stream;
      context.sm_count = kSmCount;
      launch(a, context);
    });
  }

  void sweep(const char* name) {
    const cuda::GemmFp8Shape shape{m_, n_, k_};
    sweep_thin(name, shape);
    const GemmFp8Plan chosen = gemm_fp8_plan(shape, kSmCount);
    print(name, chosen, run(planned(chosen)), " <- plan");
    for (int i = 0; i < cuda::kGemmFp8TileCount; i++) {
      for (const int cluster : {1, 2}) {
        const int tile_m = gemm_fp8_tile_m(shape, i, cluster);
        if (!gemm_fp8_fits(shape, i, cluster, tile_m)) continue;
        for (const int shared : {225, 110}) {
          for (const bool staged : {false, true}) {
            if (staged && !cuda::gemm_fp8_can_stage(i, tile_m)) continue;
            const GemmFp8Plan p = gemm_fp8_plan_for(shape, i, cluster, tile_m, kSmCount, shared << 10, staged);
            if (p.estimated_us > 2 * chosen.estimated_us + 2 || (shared == 110 && (p.stages < 3 || m_ > 64))) continue;
            rest();
            print(name, p, run(planned(p)), "");
          }
        }
      }
    }
  }

 private:
  static Launch planned(const GemmFp8Plan& plan) {
    return [plan](const GemmFp8Args& a, const cuda::KernelContext& c) { launch_gemm_fp8_planned(a, plan, c); };
  }
  void sweep_thin(const char* name, const cuda::GemmFp8Shape& shape) {
    for (const int cluster : {1, 2, 4, 8}) {
      for (const int resident : {1, 2, 3}) {
        const cuda::GemmFp8ThinPlan p = gemm_fp8_thin_plan_for(shape, cluster, resident, kSmCount);
        if (p.stages == 0) continue;
        const double us =
            run([&](const GemmFp8Args& a, const cuda::KernelContext& c) { launch_gemm_fp8_thin_planned(a, p, c); });
        std::fprintf(stderr, "%s thin c%d r%d st%d n%d: %.2f\n", name, p.cluster, resident, p.stages, p.ctas, us);
      }
    }
  }
  static void print(const char* name, const GemmFp8Plan& p, double us, const char* remark) {
    std::fprintf(stderr, "%s %d %dx%d m%d c%d st%d n%d%s: %.2f (%.1f)%s\n", name, p.tile_index,
                 p.tile().warpgroups * 64, p.tile().tile_n, p.tile_m, p.cluster_m, p.stages, p.ctas,
                 p.staged ? " staged" : "", us, p.estimated_us, remark);
  }

  int64_t m_, n_, k_;
  DeviceBuffer out_;
  std::unique_ptr<DeviceBuffer> x_, x_scale_, w_scale_;
  std::vector<std::unique_ptr<DeviceBuffer>> weights_;
};

// The tensor cores' rate for e4m3 is twice that for bf16.
double fp8_floor_us(int64_t m, int64_t n, int64_t k) {
  return floor_us(static_cast<double>(m * n) * static_cast<double>(k), static_cast<double>(m * k + n * k + 2 * m * n));
}

// Grouped: `tokens` × `top` rows drawn among the experts, each matrix read once where it has rows.
class GroupedBench {
 public:
  GroupedBench(int64_t tokens, int64_t top, int64_t experts, int64_t n, int64_t k, bool masked)
      : counts_(route(tokens, top, experts)), n_(n), k_(k) {
    static const std::vector<uint8_t> values = bell((size_t{1} << 22) + 12345);
    m_ = tokens * top;
    if (masked) {
      capacity_ = (*std::max_element(counts_.begin(), counts_.end()) + 63) / 64 * 64;
      m_ = experts * capacity_;
    }
    std::vector<int32_t> rows(masked ? counts_ : std::vector<int32_t>(1, 0));
    for (size_t e = 0; !masked && e < counts_.size(); e++) rows.push_back(rows.back() + counts_[e]);
    rows_ = std::make_unique<DeviceBuffer>(rows.size() * 4);
    cuda::check(cudaMemcpy(rows_->data(), rows.data(), rows.size() * 4, cudaMemcpyHostToDevice), "fill");
    x_ = filled_fp8(values, static_cast<size_t>(m_ * fp8_row_bytes(k)));
    w_ = filled_fp8(values, static_cast<size_t>(experts * fp8_stored_rows(n) * fp8_row_bytes(k)));
    x_scale_ = random_scales(static_cast<size_t>(fp8_blocks(k) * fp8_scale_stride(m_)));
    w_scale_ = random_scales(static_cast<size_t>(experts * fp8_blocks(k) * fp8_blocks(n)));
    out_ = std::make_unique<DeviceBuffer>(static_cast<size_t>(m_ * n) * 2);
  }

  static std::vector<int32_t> route(int64_t tokens, int64_t top, int64_t experts) {
    std::vector<int32_t> counts(static_cast<size_t>(experts), 0);
    std::mt19937_64 rng(3);
    std::vector<size_t> order(static_cast<size_t>(experts));
    std::iota(order.begin(), order.end(), size_t{0});
    for (int64_t t = 0; t < tokens; t++) {
      for (size_t i = 0; i < static_cast<size_t>(top); i++) {
        std::swap(order[i], order[i + rng() % (order.size() - i)]);
        counts[order[i]]++;
      }
    }
    return counts;
  }
  static double floor(int64_t tokens, int64_t top, int64_t experts, int64_t n, int64_t k) {
    const std::vector<int32_t> counts = route(tokens, top, experts);
    const auto used = static_cast<double>(std::ranges::count_if(counts, [](int32_t c) { return c > 0; }));
    const double rows = static_cast<double>(tokens * top), columns = static_cast<double>(n),
                 depth = static_cast<double>(k);
    return floor_us(rows * columns * depth, used * columns * depth + rows * depth + 2 * rows * columns);
  }

  double run() {
    return graph_us(2, [&](int, cudaStream_t stream) {
      GroupedGemmFp8Args a;
      a.x = x_->data<uint8_t>();
      a.x_scale = x_scale_->data<float>();
      a.m = m_;
      a.x_scale_stride = fp8_scale_stride(m_);
      a.w = w_->data<uint8_t>();
      a.w_scale = w_scale_->data<float>();
      a.experts = static_cast<int64_t>(counts_.size());
      a.n = n_;
      a.k = k_;
      a.rows = rows_->data<int32_t>();
      a.capacity = capacity_;
      a.expected_m = std::accumulate(counts_.begin(), counts_.end(), int64_t{0}) / a.experts;
      a.out = out_->data();
      cuda::KernelContext context;
      context.stream = stream;
      context.sm_count = kSmCount;
      launch_grouped_gemm_fp8(a, context);
    });
  }

 private:
  std::vector<int32_t> counts_;
  int64_t n_, k_, m_ = 0, capacity_ = 0;
  std::unique_ptr<DeviceBuffer> rows_, x_, x_scale_, w_, w_scale_, out_;
};

void add(std::vector<Case>& all) {
  const auto add_case = [&](int64_t m, int64_t n, int64_t k) {
    Case c;
    c.op = "gemm_fp8";
    c.name = "m" + std::to_string(m) + "-" + std::to_string(n) + "x" + std::to_string(k);
    c.floor_us = fp8_floor_us(m, n, k);
    c.run = [=, name = c.name] {
      GemmFp8Bench bench(m, n, k);
      if (std::getenv("ISOBIT_GEMM_SWEEP") != nullptr) bench.sweep(name.c_str());
      bench.rest();
      return bench.run();
    };
    all.push_back(c);
  };
  for (const auto& [n, k] :
       {std::pair{2112, 7168}, {24576, 1536}, {32768, 512}, {7168, 16384}, {4096, 7168}, {7168, 2048}}) {
    for (const int m : {4096, 64, 1, 128}) add_case(m, n, k);
  }
  for (const auto& [n, k] : {std::pair{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}}) {
    add_case(1, n, k);  // a step of an 8B decoder
  }
  add_case(8192, 8192, 8192);
  struct Moe {
    const char* name;
    int64_t experts, top, n, k;
  };
  constexpr Moe kMoes[] = {{"dsv3-up", 256, 8, 4096, 7168},
                           {"dsv3-down", 256, 8, 7168, 2048},
                           {"qwen3-30b-up", 128, 8, 1536, 2048},
                           {"qwen3-30b-down", 128, 8, 2048, 768}};
  for (const Moe& moe : kMoes) {
    for (const bool masked : {false, true}) {
      for (const int64_t tokens : {128, 1024, 8192}) {
        Case c;
        c.op = masked ? "gemm_fp8_masked" : "gemm_fp8_grouped";
        c.name = moe.name + std::string("-t") + std::to_string(tokens);
        c.floor_us = GroupedBench::floor(tokens, moe.top, moe.experts, moe.n, moe.k);
        c.run = [=] { return GroupedBench(tokens, moe.top, moe.experts, moe.n, moe.k, masked).run(); };
        all.push_back(c);
      }
    }
  }
}

const AddCases kAdd(add);

}  // namespace
}  // namespace isobit::bench
