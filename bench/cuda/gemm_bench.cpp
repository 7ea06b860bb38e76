// Rows gemm_bf16. With ISOBIT_GEMM_SWEEP set, every tile and cluster that fits is timed and printed to stderr.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "gpu_bench.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm.h"
#include "ops/cuda/linear_cuda.h"

namespace isobit::bench {
namespace {

using cuda::CudaLinear;
using cuda::GemmPlan;

constexpr int kSmCount = 132;

class GemmBench {
 public:
  GemmBench(int64_t m, int64_t n, int64_t k)
      : m_(m), x_(static_cast<size_t>(m * k) * 2), out_(static_cast<size_t>(m * n) * 2) {
    x_.fill_random_bf16(1);
    out_.poison();
    const size_t bytes = static_cast<size_t>(n * k) * 2;
    const int copies = m >= 1024 ? 2 : rotated_copies(bytes);
    for (int i = 0; i < copies; i++) {
      auto memory = std::make_shared<DeviceBuffer>(bytes);
      memory->fill_random_bf16(static_cast<uint64_t>(i) << 40);
      const std::shared_ptr<void> view(memory, memory->data());
      weights_.push_back(std::make_unique<CudaLinear>(n, k, LinearForm::kStacked, DType::kBF16, Buffer(view, bytes)));
    }
  }

  // At 800 W and more the clocks fall from 1.6 to 1.35 GHz within a tenth of a second; a pause makes cases independent
  // of those before them (the peers pause too).
  void rest() const {
    if (large()) std::this_thread::sleep_for(std::chrono::seconds(1));
  }

  double run(const GemmPlan* plan = nullptr) {
    const auto call = [&](int i, cudaStream_t stream) {
      GemmArgs a = args(i);
      cuda::KernelContext context;
      context.stream = stream;
      context.sm_count = kSmCount;
      if (plan != nullptr) {
        launch_gemm_planned(a, *plan, context);
      } else {
        launch_gemm(a, context);
      }
    };
    return graph_us(static_cast<int>(weights_.size()), call, 15,
                    large() ? Replays::kBeforeClocksFall : Replays::kUntilClocksRise);
  }

  void sweep(const char* name) {
    const cuda::GemmShape shape = cuda::gemm_shape(args(0));
    const GemmPlan chosen = gemm_plan(shape, kSmCount);
    for (const cuda::GemmTile& t : cuda::gemm_tiles()) {
      for (const auto& [cm, cn] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {1, 4}, {4, 1}}) {
        if (!gemm_tile_fits(shape, t, cm, cn)) continue;
        const GemmPlan base = gemm_plan_for(shape, t, cm, cn, kSmCount);
        if (base.estimated_us > 2.0 * chosen.estimated_us + 2) continue;
        const int stage_bytes = (base.shared_bytes - 1024) / base.stages;
        std::vector<int> stages = {base.stages};
        const int paired = std::min(16, (110 << 10) / stage_bytes), alone = std::min(16, (224 << 10) / stage_bytes);
        if (t.warpgroups == 1 && paired >= 2 && paired != base.stages) stages.push_back(paired);
        if (alone != base.stages) stages.push_back(alone);
        for (const int st : stages) {
          GemmPlan p = base;
          p.stages = st;
          p.shared_bytes = st * stage_bytes + 1024;
          const bool is = chosen.tile == t && chosen.cluster_m == cm && chosen.cluster_n == cn && chosen.stages == st;
          std::fprintf(stderr, "%s %dx%dx%d c%d%d st%d n%d: %.2f (%.1f)%s\n", name, t.warpgroups * 64, t.tile_n,
                       64 * t.slices, cm, cn, st, p.ctas, run(&p), p.estimated_us, is ? " <- plan" : "");
        }
      }
    }
  }

 private:
  bool large() const { return m_ >= 1024; }
  GemmArgs args(int i) const {
    GemmArgs a;
    a.x = x_.data<uint16_t>();
    a.m = m_;
    a.w = weights_[static_cast<size_t>(i)].get();
    a.epilogue = Epilogue::kStoreRounded;
    a.out = out_.data();
    return a;
  }

  int64_t m_;
  DeviceBuffer x_, out_;
  std::vector<std::unique_ptr<CudaLinear>> weights_;
};

void add(std::vector<Case>& all) {
  const auto add_case = [&](int64_t m, int64_t n, int64_t k) {
    Case c;
    c.op = "gemm_bf16";
    c.name = "m" + std::to_string(m) + "-" + std::to_string(n) + "x" + std::to_string(k);
    c.floor_us = floor_us(2.0 * static_cast<double>(m * n) * static_cast<double>(k),
                          2.0 * static_cast<double>(m * k + n * k + m * n));
    c.run = [=, name = c.name] {
      GemmBench bench(m, n, k);
      if (std::getenv("ISOBIT_GEMM_SWEEP") != nullptr) bench.sweep(name.c_str());
      bench.rest();
      return bench.run();
    };
    all.push_back(c);
  };
  for (const auto& [n, k] : {std::pair{4096, 4096}, {28672, 4096}, {4096, 14336}, {7168, 2048}}) {
    for (const int m : {1, 16, 64, 4096}) add_case(m, n, k);
  }
  add_case(128, 4096, 4096);
  add_case(256, 4096, 4096);
  add_case(8192, 8192, 8192);
}

const AddCases kAdd(add);

}  // namespace
}  // namespace isobit::bench
