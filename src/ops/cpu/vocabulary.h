#pragma once
// Passes over one row of logits. All values are finite or -infinity, but for scan's input.
#include <cstdint>

#include "numerics/philox.h"

namespace isobit::cpu {

struct VocabularyScan {
  float largest;  // -infinity in a row without a finite value
  bool ok;        // no NaN, no +infinity, at least one finite value
};

struct Noise {
  uint64_t seed;
  uint32_t position, choice;
  numerics::NoisePurpose purpose = numerics::NoisePurpose::kSample;
};

// z[i] = fmul(y[i], factor), or y[i] where the factor is 1; z may be null where the factor is 1.
VocabularyScan scan_logits(int64_t simd, const float* y, int64_t n, float factor, float* z);

// The lowest id whose value is `largest`.
int32_t find_first(int64_t simd, const float* z, int64_t n, float largest);

// Σ mass(z[i], largest).
uint64_t sum_masses(int64_t simd, const float* z, int64_t n, float largest);

// The token whose value plus noise is largest, the lowest id among equals (rule N15).
int32_t sample_gumbel(int64_t simd, const float* z, int64_t n, float largest, const Noise& noise);

}  // namespace isobit::cpu
