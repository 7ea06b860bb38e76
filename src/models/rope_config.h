#pragma once
#include <optional>
#include <vector>

#include "models/config.h"

namespace isobit {

// How a file stretches its rotary frequencies, rule N25.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3, kYarn, kFactors };
  Kind kind = Kind::kNone;
  double factor = 1.0;                       // linear, llama3, yarn
  double original_context = 0.0;             // llama3, yarn, factors with long_factors
  double low = 1.0, high = 4.0;              // llama3: turns in the original context
  double beta_fast = 32.0, beta_slow = 1.0;  // yarn: the same
  bool whole_range = true;                   // yarn
  std::vector<float> factors, long_factors;  // one a frequency; long_factors: of contexts longer than the original
  double magnitude = 1.0;                    // of cos and sin
};

// dim elements turn, with base theta.
RopeConfig make_rope(int32_t dim, RopeLayout layout, double theta, const RopeScaling& scaling);

}  // namespace isobit
