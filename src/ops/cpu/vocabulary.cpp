#include "ops/cpu/vocabulary.h"

#include <limits>

#include "numerics/sampling.h"

namespace isobit::cpu {

using namespace numerics;

VocabularyScan scan_logits(int64_t, const float* y, int64_t n, float factor, float* z) {
  VocabularyScan s{-std::numeric_limits<float>::infinity(), true};
  for (int64_t i = 0; i < n; i++) {
    const float v = factor == 1.0f ? y[i] : fmul(y[i], factor);
    if (z != nullptr) z[i] = v;
    s.ok &= !(is_nan(v) || bits(v) == kInf32);
    s.largest = v > s.largest ? v : s.largest;
  }
  s.ok &= std::isfinite(s.largest);
  return s;
}

int32_t find_first(int64_t, const float* z, int64_t n, float largest) {
  for (int64_t i = 0; i < n; i++) {
    if (z[i] == largest) return static_cast<int32_t>(i);
  }
  return -1;
}

uint64_t sum_masses(int64_t, const float* z, int64_t n, float largest) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; i++) sum += mass(z[i], largest);
  return sum;
}

int32_t sample_gumbel(int64_t, const float* z, int64_t n, float, const Noise& noise) {
  int32_t best = -1;
  double best_score = -std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; i += 4) {
    const PhiloxWords w = philox4x32(noise.seed, {{static_cast<uint32_t>(i / 4), noise.position,
                                                   static_cast<uint32_t>(NoisePurpose::kSample), noise.choice}});
    for (int64_t j = i; j < n && j < i + 4; j++) {
      if (static_cast<double>(z[j]) + 22.9 < best_score) continue;
      const double score = gumbel_score(z[j], w.w[j - i]);
      if (score > best_score) best_score = score, best = static_cast<int32_t>(j);
    }
  }
  return best;
}

}  // namespace isobit::cpu
