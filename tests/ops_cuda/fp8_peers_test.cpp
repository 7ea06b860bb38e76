// The FP8 GEMM's error against float64, beside its peers' on the same inputs (bench/peers/fp8_peers.py --dump DIR
// writes them; ISOBIT_FP8_PEERS names the folder).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "numerics/convert.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

template <typename T>
std::vector<T> read_array(const std::filesystem::path& file, int64_t count) {
  std::vector<T> v(static_cast<size_t>(count));
  std::ifstream in(file, std::ios::binary);
  in.read(reinterpret_cast<char*>(v.data()), static_cast<std::streamsize>(v.size() * sizeof(T)));
  EXPECT_TRUE(in.good()) << file;
  return v;
}

struct PeersProblem {
  int64_t m = 0, n = 0, k = 0;
  std::vector<uint8_t> x, w;
  std::vector<float> x_scale, w_scale;

  explicit PeersProblem(const std::filesystem::path& folder) {
    std::ifstream(folder / "shape.txt") >> m >> n >> k;
    x = read_array<uint8_t>(folder / "x.bin", m * k);
    w = read_array<uint8_t>(folder / "w.bin", n * k);
    x_scale = read_array<float>(folder / "x_scale.bin", fp8_blocks(k) * m);
    w_scale = read_array<float>(folder / "w_scale.bin", fp8_blocks(n) * fp8_blocks(k));
  }

  std::vector<uint16_t> run() const {
    std::vector<uint8_t> stored = w;  // rows in groups of 32
    stored.resize(static_cast<size_t>(fp8_stored_rows(n) * k), 0);
    const GpuArray<uint8_t> gpu_x(x), gpu_w(stored);
    const GpuArray<float> gpu_x_scale(x_scale), gpu_w_scale(w_scale);
    const GpuArray<uint16_t> out(static_cast<size_t>(m * n));
    GemmFp8Args a;
    a.x = gpu_x.data();
    a.x_scale = gpu_x_scale.data();
    a.m = a.x_scale_stride = m;
    a.w = gpu_w.data();
    a.w_scale = gpu_w_scale.data();
    a.n = n;
    a.k = k;
    a.out = out.data();
    a.check();
    cuda::KernelContext context;
    context.sm_count = 132;
    launch_gemm_fp8(a, context);
    cuda::check(cudaDeviceSynchronize(), "gemm_fp8");
    return out.get();
  }

  double exact(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t b = 0; b < fp8_blocks(k); b++) {
      double p = 0;
      for (int64_t at = b * 128; at < b * 128 + 128; at++) {
        p += static_cast<double>(numerics::e4m3_to_f32(x[static_cast<size_t>(i * k + at)])) *
             static_cast<double>(numerics::e4m3_to_f32(w[static_cast<size_t>(j * k + at)]));
      }
      sum += p * static_cast<double>(x_scale[static_cast<size_t>(b * m + i)]) *
             static_cast<double>(w_scale[static_cast<size_t>(j / 128 * fp8_blocks(k) + b)]);
    }
    return sum;
  }
};

TEST(GpuGemmFp8, ErrorNoLargerThanPeers) {
  const char* folder = std::getenv("ISOBIT_FP8_PEERS");
  if (folder == nullptr) GTEST_SKIP() << "ISOBIT_FP8_PEERS names no folder of bench/peers/fp8_peers.py --dump";
  const PeersProblem p(folder);
  ASSERT_TRUE(p.m % 4 == 0 && p.k % 128 == 0);
  std::vector<std::pair<std::string, std::vector<uint16_t>>> answers = {{"isobit", p.run()}};
  for (const char* peer : {"DeepGEMM", "cuBLASLt"}) {
    const auto file = std::filesystem::path(folder) / (std::string(peer) + ".bin");
    if (std::filesystem::exists(file)) answers.emplace_back(peer, read_array<uint16_t>(file, p.m * p.n));
  }
  ASSERT_GT(answers.size(), 1u) << "no peer's answers in " << folder;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 rng(seed);
  constexpr int kSamples = 20000;
  std::vector<double> squares(answers.size(), 0.0);
  std::vector<int> equal(answers.size(), 0);
  double norm = 0;
  for (int s = 0; s < kSamples; s++) {
    const auto at = static_cast<size_t>(rng() % static_cast<uint64_t>(p.m * p.n));
    const double exact = p.exact(static_cast<int64_t>(at) / p.n, static_cast<int64_t>(at) % p.n);
    norm += exact * exact;
    for (size_t a = 0; a < answers.size(); a++) {
      const double error = static_cast<double>(numerics::bf16_to_f32(answers[a].second[at])) - exact;
      squares[a] += error * error;
      equal[a] += answers[a].second[at] == answers[0].second[at];
    }
  }
  for (size_t a = 0; a < answers.size(); a++) {
    const double error = std::sqrt(squares[a] / norm);
    fmt::print("{} {}x{}x{}: relative error {:.6e}, {} of {} outputs as isobit's\n", answers[a].first, p.m, p.n, p.k,
               error, equal[a], kSamples);
    // Of the same arithmetic but for the order of operations: a thousandth is far above what the sample tells apart.
    EXPECT_LE(std::sqrt(squares[0] / norm), error * 1.001) << answers[a].first;
  }
}

}  // namespace
}  // namespace isobit
