// 10^7 draws on the GPU for each mixture of filters against the exact probabilities, and a bias of 1% that is seen.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "ops/cuda/kernels.h"
#include "ops_cuda/gpu_memory.h"
#include "ops_cuda/sampling_reference.h"

namespace isobit::test {
namespace {

constexpr int64_t kVocab = 1024, kDraws = 10'000'000, kRows = 16384;

// Draws of one slot at positions 0, 1, ...: how often each token came.
std::vector<int64_t> count_draws(const std::vector<float>& y, const SamplingParams& params) {
  const auto slots = cuda::make_sampler_slots(1, kVocab, {});
  slots->assign(0, params, {});
  std::vector<float> all;
  for (int64_t i = 0; i < kRows; i++) all.insert(all.end(), y.begin(), y.end());
  const GpuArray<float> logits(all);
  GpuArray<int32_t> ids(std::vector<int32_t>(kRows, 0)), positions(kRows), tokens(kRows), status(kRows);
  std::vector<int64_t> hits(y.size());
  std::vector<int32_t> at(kRows);
  cuda::KernelContext context;
  context.sm_count = 132;
  for (int64_t done = 0; done < kDraws; done += kRows) {
    const int64_t rows = std::min(kRows, kDraws - done);
    for (int64_t i = 0; i < rows; i++) at[static_cast<size_t>(i)] = static_cast<int32_t>(done + i);
    positions.set(at);
    SampleArgs a;
    a.logits = logits.data(), a.slots = ids.data(), a.positions = positions.data(), a.rows = rows, a.vocab = kVocab;
    a.tokens = tokens.data(), a.status = status.data();
    launch_sample(*slots, a, context);
    cuda::check(cudaDeviceSynchronize(), "sample");
    const std::vector<int32_t> got = tokens.get();
    for (int64_t i = 0; i < rows; i++) hits[static_cast<size_t>(got[static_cast<size_t>(i)])]++;
  }
  return hits;
}

// The probabilities that rule N17's filters leave, computed apart from the rules: softmax in double over a sorted row.
std::vector<double> exact_probabilities(const std::vector<float>& y, const SamplingParams& p) {
  std::vector<size_t> order(y.size());
  for (size_t i = 0; i < order.size(); i++) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return y[a] > y[b]; });
  std::vector<double> e;
  for (const size_t i : order) e.push_back(std::exp((static_cast<double>(y[i]) - y[order[0]]) / p.temperature));
  size_t kept = p.top_k > 0 ? static_cast<size_t>(p.top_k) : e.size();
  double total = 0, before = 0;
  for (size_t i = 0; i < kept; i++) total += e[i];
  size_t nucleus = 0;
  for (; nucleus < kept && (p.top_p == 1.0f || before < total * p.top_p); nucleus++) before += e[nucleus];
  while (p.min_p > 0 && nucleus > 1 && e[nucleus - 1] < p.min_p) before -= e[--nucleus];
  std::vector<double> probability(y.size());
  for (size_t i = 0; i < nucleus; i++) probability[order[i]] = e[i] / before;
  return probability;
}

struct Fit {
  double deviate;  // of chi-square, in standard deviations (Wilson and Hilferty)
  double largest;  // a token's distance from its expected count, in standard deviations
  bool outside;    // a token was drawn that the filters cut
};
Fit fit(const std::vector<int64_t>& hits, const std::vector<double>& probability) {
  double chi = 0, largest = 0, rest = 0, rest_hits = 0;
  int cells = 0;
  bool outside = false;
  const auto add = [&](double seen, double expected) {
    chi += (seen - expected) * (seen - expected) / expected;
    cells++;
  };
  for (size_t i = 0; i < hits.size(); i++) {
    const double p = probability[i], expected = p * static_cast<double>(kDraws), seen = static_cast<double>(hits[i]);
    outside = outside || (p == 0 && seen > 0);
    if (expected < 10) {
      rest += expected, rest_hits += seen;
      continue;
    }
    add(seen, expected);
    largest = std::max(largest, std::abs(seen - expected) / std::sqrt(expected * (1 - p) + 1e-9));
  }
  if (rest > 10) add(rest_hits, rest);
  const double freedom = std::max(1, cells - 1);
  return {(std::cbrt(chi / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom)), largest, outside};
}

// Token 3 has probability 0.1 without filters.
std::vector<float> row_with_a_tenth(std::mt19937_64& random, double tenth) {
  std::normal_distribution<float> normal(0.0f, 1.5f);
  std::vector<float> y(kVocab);
  double others = 0;
  for (size_t i = 0; i < y.size(); i++) {
    y[i] = normal(random);
    if (i != 3) others += std::exp(static_cast<double>(y[i]));
  }
  y[3] = static_cast<float>(std::log(others * tenth / (1 - tenth)));
  return y;
}

TEST(GpuSamplingDistribution, TenMillionDrawsFollowTheFilters) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::vector<float> y = row_with_a_tenth(random, 0.1);
  SamplingParams mixtures[7];
  mixtures[1].top_k = 40;
  mixtures[2].top_p = 0.8f;
  mixtures[3].min_p = 0.02f;
  mixtures[4].top_k = 127, mixtures[4].top_p = 0.9f;
  mixtures[5].top_p = 0.95f, mixtures[5].min_p = 0.01f;
  mixtures[6].temperature = 0.7f, mixtures[6].top_k = 300, mixtures[6].top_p = 0.99f, mixtures[6].min_p = 0.001f;
  for (SamplingParams& p : mixtures) {
    p.seed = random();
    const Fit f = fit(count_draws(y, p), exact_probabilities(y, p));
    EXPECT_TRUE(std::abs(f.deviate) < 5 && f.largest < 6 && !f.outside)
        << fmt::format("k {} p {} min {}: chi-square {:.1f} deviations off, a token {:.1f}; outside {}", p.top_k,
                       p.top_p, p.min_p, f.deviate, f.largest, f.outside);
  }
}

TEST(GpuSamplingDistribution, ABiasOfOnePercentIsSeen) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed), again(random);
  const std::vector<float> y = row_with_a_tenth(random, 0.1), biased = row_with_a_tenth(again, 0.101);
  SamplingParams p;
  p.seed = random();
  const Fit f = fit(count_draws(biased, p), exact_probabilities(y, p));
  EXPECT_GT(f.largest, 6) << "10^7 draws did not show it";
}

}  // namespace
}  // namespace isobit::test
