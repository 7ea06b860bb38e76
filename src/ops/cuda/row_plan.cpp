#include "ops/cuda/row_plan.h"

#include <algorithm>

namespace isobit::cuda {

RowPlan plan_rows(int64_t rows, int64_t length, const ClusterPlaces& places, int64_t longest_part) {
  constexpr double kMemory = 4300, kCta = 15;  // bytes a ns
  // A row's thresholds, cuts and barriers take about 10 us, of which the other rows' reading hides most.
  constexpr double kPerRound = 4000;  // ns
  RowPlan best;
  double least = 1e300;
  for (int c = 1; c <= kMaxRowCluster; c++) {
    const int64_t n = places[static_cast<size_t>(c)];
    const int64_t groups = (length + 3) / 4, share = (groups + c - 1) / c;
    const bool forced = c < kMaxRowCluster && share * 4 > longest_part;
    const bool idle = c > 1 && share < kRowThreads;  // threads without a value
    if (n <= 0 || forced || idle) continue;
    const int64_t rounds = (rows + n - 1) / n, last = rows - (rounds - 1) * n;
    const double bytes = static_cast<double>(share) * 16;
    const auto round = [&](int64_t active) {
      return bytes / std::min(kCta, kMemory / static_cast<double>(active * c));
    };
    const double time = static_cast<double>(rounds - 1) * (round(n) + kPerRound) + round(last) + 20 * c;
    if (time < least) {
      least = time;
      best = {c, static_cast<int>(std::min<int64_t>(rows, n))};
    }
  }
  return best;
}

}  // namespace isobit::cuda
