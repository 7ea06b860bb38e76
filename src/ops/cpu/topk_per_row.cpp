// Per-row top-k: a histogram of the keys' upper digits finds the bin of the k-th key, the ids in that bin are put in
// order, and a last pass writes the indices as they come.
#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "numerics/sampling.h"
#include "ops/cpu/cpu_ops.h"

namespace isobit::cpu {
namespace {

using numerics::order_key;

// A NaN's key is the largest there is: order_key's fadd makes every NaN the canonical one.
uint32_t key_of(float y) { return numerics::is_nan(y) ? 0xffffffffu : order_key(y); }

// The k-th largest candidate_key; 1 <= k <= n.
uint64_t kth_key(const float* y, int64_t n, int64_t k) {
  constexpr int kShift = 20;
  std::array<int64_t, size_t{1} << (32 - kShift)> counts{};
  for (int64_t i = 0; i < n; i++) counts[key_of(y[i]) >> kShift]++;
  size_t bin = counts.size() - 1;
  int64_t above = 0;
  while (above + counts[bin] < k) above += counts[bin--];
  std::vector<uint64_t> keys;
  keys.reserve(static_cast<size_t>(counts[bin]));
  for (int64_t i = 0; i < n; i++) {
    const uint32_t key = key_of(y[i]);
    if (key >> kShift == bin)
      keys.push_back(static_cast<uint64_t>(key) << 32 | (0xffffffffu - static_cast<uint32_t>(i)));
  }
  const auto at = keys.begin() + (k - above - 1);
  std::nth_element(keys.begin(), at, keys.end(), std::greater<>());
  return *at;
}

}  // namespace

void topk_per_row(const Cpu& cpu, const TopkPerRowArgs& a) {
  cpu.pool.parallel_for(a.rows, [&](int, int64_t row) {
    int32_t* out = a.out + row * a.k;
    const int64_t start = a.starts != nullptr ? a.starts[row] : 0, end = a.ends != nullptr ? a.ends[row] : a.stride;
    const bool good = start >= 0 && start <= end && end <= a.stride;
    a.status[row] = good ? kTopkDone : kTopkBadRange;
    const int64_t n = good ? end - start : 0;
    const float* y = a.logits + row * a.stride + start;
    int64_t written = 0;
    const uint64_t cutoff = n > a.k ? kth_key(y, n, a.k) : 0;
    for (int64_t i = 0; i < n; i++) {
      const uint64_t key = static_cast<uint64_t>(key_of(y[i])) << 32 | (0xffffffffu - static_cast<uint32_t>(i));
      if (key >= cutoff) out[written++] = static_cast<int32_t>(i);
    }
    std::fill(out + written, out + a.k, -1);
  });
}

}  // namespace isobit::cpu
