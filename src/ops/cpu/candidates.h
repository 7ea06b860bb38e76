#pragma once
// The best tokens of a row, in the contract's order: larger value first, then lower id (rule N17).
#include <cstdint>
#include <optional>
#include <vector>

#include "numerics/sampling.h"

namespace isobit::cpu {

// Keys are numerics::candidate_key.
inline int32_t candidate_id(uint64_t key) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }

class Candidates {
 public:
  // Values are finite or -infinity, the largest is finite. Keeps z, which must not change while this is used.
  Candidates(const float* z, int64_t n, float largest);

  // The k largest keys, descending; k in [1, n].
  std::vector<uint64_t> top(int64_t k) const;
  // top-p over all tokens keeps those whose key is at least this; total: Σ of all masses. p in (0, 1).
  uint64_t top_p_cutoff(float p, uint64_t total) const;

 private:
  // 4096 bins of the values, by their sign, exponent and three bits of the fraction.
  static constexpr int kShift = 20, kBins = 4096;
  static int bin(float z) { return static_cast<int>(numerics::order_key(z) >> kShift); }
  int lowest_bin_of_top(int64_t k) const;
  // Keys of the tokens in bins [low, high], descending.
  std::vector<uint64_t> sorted(int low, int high) const;
  // Goes through keys in descending order, adding their masses to `before`. The cutoff, if it is above the last key.
  std::optional<uint64_t> cutoff(const std::vector<uint64_t>& keys, uint64_t threshold, uint64_t total,
                                 uint64_t& before) const;

  const float* z_;
  int64_t n_;
  float largest_;
  std::vector<uint32_t> counts_;
};

// How many of the keys, descending, top-p keeps.
size_t top_p_count(const std::vector<uint64_t>& keys, const float* z, float largest, float p);

}  // namespace isobit::cpu
