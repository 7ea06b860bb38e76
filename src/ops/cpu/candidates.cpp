#include "ops/cpu/candidates.h"

#include <algorithm>
#include <functional>

namespace isobit::cpu {

using namespace numerics;

Candidates::Candidates(const float* z, int64_t n, float largest) : z_(z), n_(n), largest_(largest), counts_(kBins) {
  for (int64_t i = 0; i < n; i++) counts_[static_cast<size_t>(bin(z[i]))]++;
}

int Candidates::lowest_bin_of_top(int64_t k) const {
  int64_t seen = 0;
  for (int b = kBins - 1; b > 0; b--) {
    seen += counts_[static_cast<size_t>(b)];
    if (seen >= k) return b;
  }
  return 0;
}

std::vector<uint64_t> Candidates::sorted(int low, int high) const {
  std::vector<uint64_t> keys;
  for (int64_t i = 0; i < n_; i++) {
    const int b = bin(z_[i]);
    if (b >= low && b <= high) keys.push_back(candidate_key(z_[i], static_cast<uint32_t>(i)));
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return keys;
}

std::vector<uint64_t> Candidates::top(int64_t k) const {
  const int low = lowest_bin_of_top(k);
  std::vector<uint64_t> keys;
  for (int64_t i = 0; i < n_; i++) {
    if (bin(z_[i]) >= low) keys.push_back(candidate_key(z_[i], static_cast<uint32_t>(i)));
  }
  const auto end = keys.begin() + k;
  std::nth_element(keys.begin(), end - 1, keys.end(), std::greater<>());
  keys.erase(end, keys.end());
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return keys;
}

std::optional<uint64_t> Candidates::cutoff(const std::vector<uint64_t>& keys, uint64_t threshold, uint64_t total,
                                           uint64_t& before) const {
  for (const uint64_t key : keys) {
    if (!top_p_keeps(before, threshold, total)) return key + 1;
    before += mass(z_[candidate_id(key)], largest_);
  }
  return std::nullopt;
}

uint64_t Candidates::top_p_cutoff(float p, uint64_t total) const {
  constexpr int64_t kFirst = 256;  // usually enough
  const uint64_t threshold = top_p_threshold(p);
  const int low = lowest_bin_of_top(std::min(kFirst, n_));
  uint64_t before = 0;
  if (const auto found = cutoff(sorted(low, kBins - 1), threshold, total, before)) return *found;
  std::vector<uint64_t> masses(kBins);
  for (int64_t i = 0; i < n_; i++) {
    const int b = bin(z_[i]);
    if (b < low) masses[static_cast<size_t>(b)] += mass(z_[i], largest_);
  }
  for (int b = low - 1; b >= 0; b--) {
    const uint64_t after = before + masses[static_cast<size_t>(b)];
    if (!top_p_keeps(after, threshold, total)) {
      // The cut is before, in or just after this bin: only its tokens need an order.
      const auto found = cutoff(sorted(b, b), threshold, total, before);
      return found ? *found : static_cast<uint64_t>(b) << (kShift + 32);
    }
    before = after;
  }
  return 0;
}

size_t top_p_count(const std::vector<uint64_t>& keys, const float* z, float largest, float p) {
  uint64_t total = 0, before = 0;
  for (const uint64_t key : keys) total += mass(z[candidate_id(key)], largest);
  const uint64_t threshold = top_p_threshold(p);
  size_t kept = 0;
  while (kept < keys.size() && top_p_keeps(before, threshold, total)) {
    before += mass(z[candidate_id(keys[kept])], largest);
    kept++;
  }
  return kept;
}

}  // namespace isobit::cpu
