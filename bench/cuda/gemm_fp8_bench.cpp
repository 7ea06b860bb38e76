// Rows gemm_fp8. With ISOBIT_GEMM_SWEEP set, every tile and cluster that fits is timed and printed to stderr.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fp8_inputs.h"
#include "gpu_bench.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops/cuda/gemm_fp8_thin.h"

namespace isobit::bench {
namespace {

using cuda::GemmFp8Plan;

constexpr int kSmCount = 132;

class GemmFp8Bench {
 public:
  GemmFp8Bench(int64_t m, int64_t n, int64_t k) : m_(m), n_(n), k_(k), out_(static_cast<size_t>(m * n) * 2) {
    static const std::vector<uint8_t> values = bell((size_t{1} << 22) + 12345);
    x_ = filled(values, static_cast<size_t>(m * fp8_row_bytes(k)));
    x_scale_ = random_scales(static_cast<size_t>(fp8_blocks(k) * fp8_scale_stride(m)));
    w_scale_ = random_scales(static_cast<size_t>(fp8_blocks(k) * fp8_blocks(n)));
    out_.poison();
    const auto bytes = static_cast<size_t>(fp8_stored_rows(n) * fp8_row_bytes(k));
    const int copies = m >= 1024 ? 2 : rotated_copies(bytes);
    for (int i = 0; i < copies; i++) weights_.push_back(filled(values, bytes));
  }

  // As in gemm_bench.cpp.
  bool large() const { return m_ >= 1024; }
  void rest() const {
    if (large()) std::this_thread::sleep_for(std::chrono::seconds(1));
  }

  using Launch = std::function<void(const GemmFp8Args&, const cuda::KernelContext&)>;
  double run(const Launch& launch = cuda::launch_gemm_fp8) {
    const auto call = [&](int i, cudaStream_t stream) {
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
    };
    return graph_us(static_cast<int>(weights_.size()), call, 15,
                    large() ? Replays::kBeforeClocksFall : Replays::kUntilClocksRise);
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
}

const AddCases kAdd(add);

}  // namespace
}  // namespace isobit::bench
