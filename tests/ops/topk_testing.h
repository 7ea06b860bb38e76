#pragma once
// Per-row top-k in its plainest form, and rows that are hard for it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "ops/topk.h"

namespace isobit::test {

// NaN first, then larger values, then lower indices: a sort by comparison of floats, nothing of the operators'.
inline std::vector<int32_t> topk_reference(const float* y, int32_t start, int32_t end, int32_t k) {
  std::vector<int32_t> ids(static_cast<size_t>(end - start));
  std::iota(ids.begin(), ids.end(), 0);
  const float* z = y + start;
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    const bool nan_a = std::isnan(z[a]), nan_b = std::isnan(z[b]);
    return nan_a || nan_b ? nan_a && !nan_b : z[a] > z[b];
  });
  if (ids.size() > static_cast<size_t>(k)) ids.resize(static_cast<size_t>(k));
  std::sort(ids.begin(), ids.end());
  ids.resize(static_cast<size_t>(k), -1);
  return ids;
}

enum class TopkRow {
  kNormal,
  kEqual,
  kTwoValues,
  kAscending,
  kDescending,
  kNaNs,
  kAllNaN,
  kInfinities,
  kDenormals,
  kZeros,
  kFewDistinct,
  kAllBits,
  kSpike,  // the best lie together, where no sample may look
  kCount
};

inline void fill_topk_row(TopkRow kind, float* y, int64_t n, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0.0f, 3.0f);
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto pick = [&](uint64_t of) { return random() % of; };
  for (int64_t i = 0; i < n; i++) {
    const float x = normal(random);
    switch (kind) {
      case TopkRow::kEqual:
        y[i] = 0.75f;
        break;
      case TopkRow::kTwoValues:
        y[i] = pick(3) == 0 ? 2.0f : 1.0f;
        break;
      case TopkRow::kAscending:
        y[i] = static_cast<float>(i) * 0.01f - 100.0f;
        break;
      case TopkRow::kDescending:
        y[i] = 100.0f - static_cast<float>(i) * 0.01f;
        break;
      case TopkRow::kNaNs:
        y[i] = pick(50) == 0 ? (pick(2) == 0 ? nan : -nan) : x;
        break;
      case TopkRow::kAllNaN:
        y[i] = pick(2) == 0 ? nan : -nan;
        break;
      case TopkRow::kInfinities:
        y[i] = pick(3) == 0 ? (pick(2) == 0 ? infinity : -infinity) : x;
        break;
      case TopkRow::kDenormals:
        y[i] = x * 1e-40f;
        break;
      case TopkRow::kZeros:
        y[i] = pick(4) == 0 ? -1.0f : pick(2) == 0 ? 0.0f : -0.0f;
        break;
      case TopkRow::kFewDistinct:
        y[i] = std::round(x);
        break;
      case TopkRow::kAllBits: {
        const auto u = static_cast<uint32_t>(random());
        std::memcpy(&y[i], &u, sizeof(u));
        break;
      }
      case TopkRow::kSpike:
        y[i] = i > n / 3 && i < n / 3 + n / 20 ? x + 40.0f : x;
        break;
      default:
        y[i] = x;
    }
  }
}

}  // namespace isobit::test
