// Rows gemm_fp8_grouped, gemm_fp8_masked, gemm_bf16_grouped, gemm_bf16_masked and combine: mixtures of experts of the
// shapes of DeepSeek-V3 and Qwen3-30B-A3B. With ISOBIT_GEMM_SWEEP set, more tiles are timed and printed to stderr.
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

#include "fp8_inputs.h"
#include "gpu_bench.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops/cuda/moe.h"

namespace isobit::bench {
namespace {

constexpr int kSmCount = 132;

struct Moe {
  const char* name;
  int64_t experts, top, n, k;
};
constexpr Moe kMoes[] = {{"dsv3-up", 256, 8, 4096, 7168},
                         {"dsv3-down", 256, 8, 7168, 2048},
                         {"qwen3-30b-up", 128, 8, 1536, 2048},
                         {"qwen3-30b-down", 128, 8, 2048, 768}};

// Each token's experts, drawn without repetition: how many rows every expert has.
std::vector<int32_t> route(const Moe& moe, int64_t tokens) {
  std::vector<int32_t> counts(static_cast<size_t>(moe.experts), 0);
  std::mt19937_64 rng(3);
  std::vector<size_t> order(counts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (int64_t t = 0; t < tokens; t++) {
    for (size_t i = 0; i < static_cast<size_t>(moe.top); i++) {
      std::swap(order[i], order[i + rng() % (order.size() - i)]);
      counts[order[i]]++;
    }
  }
  return counts;
}

// Each matrix is read once where its expert has rows.
double grouped_floor_us(const Moe& moe, int64_t tokens, int64_t element) {
  const std::vector<int32_t> counts = route(moe, tokens);
  const auto used = static_cast<double>(std::ranges::count_if(counts, [](int32_t c) { return c > 0; }));
  const auto rows = static_cast<double>(tokens * moe.top), n = static_cast<double>(moe.n),
             k = static_cast<double>(moe.k), bytes = static_cast<double>(element);
  // The tensor cores' rate for e4m3 is twice that for bf16.
  return floor_us(bytes * rows * n * k, bytes * (used * n * k + rows * k) + 2 * rows * n);
}

std::unique_ptr<DeviceBuffer> to_device(const std::vector<int32_t>& v) {
  auto buffer = std::make_unique<DeviceBuffer>(v.size() * 4);
  cuda::check(cudaMemcpy(buffer->data(), v.data(), v.size() * 4, cudaMemcpyHostToDevice), "fill");
  return buffer;
}

class GroupedBench {
 public:
  GroupedBench(const Moe& moe, int64_t tokens, bool masked)
      : moe_(moe), counts_(route(moe, tokens)), m_(tokens * moe.top), expected_m_(m_ / moe.experts) {
    if (masked) {
      capacity_ = (*std::max_element(counts_.begin(), counts_.end()) + 63) / 64 * 64;
      m_ = moe.experts * capacity_;
    }
    std::vector<int32_t> rows(masked ? counts_ : std::vector<int32_t>(1, 0));
    for (size_t e = 0; !masked && e < counts_.size(); e++) rows.push_back(rows.back() + counts_[e]);
    rows_ = to_device(rows);
    out_ = std::make_unique<DeviceBuffer>(static_cast<size_t>(m_ * moe.n) * 2);
  }

  double fp8() {
    static const std::vector<uint8_t> values = bell((size_t{1} << 22) + 12345);
    const int64_t blocks = fp8_blocks(moe_.k);
    const auto x = filled(values, static_cast<size_t>(m_ * fp8_row_bytes(moe_.k)));
    const auto w = filled(values, static_cast<size_t>(moe_.experts * fp8_stored_rows(moe_.n) * fp8_row_bytes(moe_.k)));
    const auto x_scale = random_scales(static_cast<size_t>(blocks * fp8_scale_stride(m_)));
    const auto w_scale = random_scales(static_cast<size_t>(moe_.experts * blocks * fp8_blocks(moe_.n)));
    GroupedGemmFp8Args a;
    a.x = x->data<uint8_t>();
    a.x_scale = x_scale->data<float>();
    a.x_scale_stride = fp8_scale_stride(m_);
    a.w = w->data<uint8_t>();
    a.w_scale = w_scale->data<float>();
    if (std::getenv("ISOBIT_GEMM_SWEEP") != nullptr) sweep(a);
    return time<GroupedGemmFp8Args>(a, cuda::launch_grouped_gemm_fp8);
  }

  double bf16() {
    static const std::vector<uint16_t> values = [] {
      std::mt19937_64 rng(4);
      std::normal_distribution<float> normal;
      std::vector<uint16_t> v((size_t{1} << 21) + 12345);
      for (uint16_t& b : v) b = numerics::f32_to_bf16(normal(rng));
      return v;
    }();
    const auto x = filled(values, static_cast<size_t>(m_ * moe_.k));
    const auto w = filled(values, static_cast<size_t>(moe_.experts * moe_.n * moe_.k));
    GroupedGemmArgs a;
    a.x = x->data<uint16_t>();
    a.w = w->data<uint16_t>();
    if (std::getenv("ISOBIT_GEMM_SWEEP") != nullptr) sweep(a);
    return time<GroupedGemmArgs>(a, cuda::launch_grouped_gemm);
  }

 private:
  template <typename Args>
  Args placed(Args a) const {
    a.m = m_;
    a.experts = moe_.experts;
    a.n = moe_.n;
    a.k = moe_.k;
    a.rows = rows_->data<int32_t>();
    a.capacity = capacity_;
    a.expected_m = expected_m_;
    a.out = out_->data();
    return a;
  }

  template <typename Args>
  double time(const Args& problem, const std::function<void(const Args&, const cuda::KernelContext&)>& launch) {
    const Args a = placed(problem);
    const auto counters = to_device({0, 0});
    const bool large = expected_m_ > 128;  // the clocks fall under it, and the peers pause too
    if (large) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const auto call = [&](int, cudaStream_t stream) {
      cuda::KernelContext context;
      context.stream = stream;
      context.sm_count = kSmCount;
      context.counters = counters->data<uint32_t>();
      launch(a, context);
    };
    return graph_us(2, call, 15, large ? Replays::kBeforeClocksFall : Replays::kUntilClocksRise);
  }

  void sweep(const GroupedGemmFp8Args& a) {
    const cuda::GemmFp8Shape shape{m_, moe_.n, moe_.k};
    const cuda::GemmFp8Plan chosen = cuda::grouped_gemm_fp8_plan(shape, moe_.experts, expected_m_, kSmCount);
    for (const int cluster : {1, 2, 4}) {
      for (const int tile_m : {chosen.tile_m, chosen.tile_m / 2, chosen.tile_m + 16}) {
        if (tile_m % (8 * cluster) != 0 || tile_m == 0 || tile_m > 64 * chosen.tile().warpgroups) continue;
        for (int drop = 0; drop<10; drop += chosen.stages> 6 ? 3 : 1) {
          cuda::GemmFp8Plan p =
              cuda::grouped_gemm_fp8_plan_for(shape, moe_.experts, chosen.tile_index, tile_m, cluster, kSmCount);
          p.stages -= drop;
          if (p.stages < 3) break;
          const double us = time<GroupedGemmFp8Args>(a, [&](const GroupedGemmFp8Args& g, const cuda::KernelContext& c) {
            launch_grouped_gemm_fp8_planned(g, p, c);
          });
          std::fprintf(stderr, "%s m%d c%d st%d: %.1f\n", moe_.name, tile_m, cluster, p.stages, us);
        }
      }
    }
  }
  void sweep(const GroupedGemmArgs& a) {
    const cuda::GroupedGemmPlan chosen = cuda::grouped_gemm_plan(placed(a), kSmCount);
    for (const int cluster : {1, 2, 4}) {
      if (chosen.tile_m % (8 * cluster) != 0) continue;
      const cuda::GroupedGemmPlan p =
          cuda::grouped_gemm_plan_for(placed(a), chosen.many, chosen.tile_m, cluster, kSmCount);
      const double us = time<GroupedGemmArgs>(
          a, [&](const GroupedGemmArgs& g, const cuda::KernelContext& c) { launch_grouped_gemm_planned(g, p, c); });
      std::fprintf(stderr, "%s bf16 m%d c%d st%d: %.1f\n", moe_.name, p.tile_m, cluster, p.stages, us);
    }
  }

  Moe moe_;
  std::vector<int32_t> counts_;
  int64_t m_, expected_m_, capacity_ = 0;
  std::unique_ptr<DeviceBuffer> rows_, out_;
};

// A token's rows lie anywhere among the experts'.
double combine_us(int64_t tokens, int64_t top, int64_t n) {
  const int64_t rows = tokens * top;
  std::vector<int32_t> row(static_cast<size_t>(rows));
  std::iota(row.begin(), row.end(), 0);
  std::shuffle(row.begin(), row.end(), std::mt19937_64(5));
  const auto places = to_device(row);
  const auto weights = random_scales(static_cast<size_t>(rows));
  const auto bytes = static_cast<size_t>(rows * n) * 2;
  std::vector<std::unique_ptr<DeviceBuffer>> x;
  for (int i = 0; i < rotated_copies(bytes); i++) {
    x.push_back(std::make_unique<DeviceBuffer>(bytes));
    x.back()->fill_random_bf16(static_cast<uint64_t>(i));
  }
  const DeviceBuffer out(static_cast<size_t>(tokens * n) * 4);
  return graph_us(static_cast<int>(x.size()), [&](int i, cudaStream_t stream) {
    CombineArgs a;
    a.x = x[static_cast<size_t>(i)]->data();
    a.rows = rows;
    a.n = n;
    a.row = places->data<int32_t>();
    a.weight = weights->data<float>();
    a.count = tokens;
    a.top = top;
    a.out = out.data();
    cuda::KernelContext context;
    context.stream = stream;
    launch_combine(a, context);
  });
}

void add(std::vector<Case>& all) {
  for (const Moe& moe : kMoes) {
    for (const bool fp8 : {true, false}) {
      for (const bool masked : {false, true}) {
        for (const int64_t tokens : {128, 1024, 8192}) {
          Case c;
          c.op = std::string(fp8 ? "gemm_fp8_" : "gemm_bf16_") + (masked ? "masked" : "grouped");
          c.name = moe.name + std::string("-t") + std::to_string(tokens);
          c.floor_us = grouped_floor_us(moe, tokens, fp8 ? 1 : 2);
          c.run = [=] {
            GroupedBench bench(moe, tokens, masked);
            return fp8 ? bench.fp8() : bench.bf16();
          };
          all.push_back(c);
        }
      }
    }
  }
  for (const int64_t tokens : {128, 8192}) {
    Case c;
    c.op = "combine";
    c.name = "dsv3-t" + std::to_string(tokens);
    const auto values = static_cast<double>(tokens * 7168);
    c.floor_us = floor_us(16 * values, (8 * 2 + 4) * values);
    c.run = [=] { return combine_us(tokens, 8, 7168); };
    all.push_back(c);
  }
}

const AddCases kAdd(add);

}  // namespace
}  // namespace isobit::bench
