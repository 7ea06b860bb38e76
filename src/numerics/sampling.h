#pragma once
// N12. What is done to a logit before sampling, and N17, which tokens survive the filters. Scalar forms; ops/sampling.h
// has the operator.
#include "numerics/softmax.h"

namespace isobit::numerics {

struct Penalties {
  float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
};

// Bias, then penalties, then temperature. in_context: the token occurs in the prompt or the output; output_count: times
// it occurs in the output. inv_temperature = fdiv(1, temperature). Temperature 0 is argmax of the value with
// inv_temperature 1.
ISOBIT_HD float process_logit(float y, float bias, const Penalties& p, bool in_context, int output_count,
                              float inv_temperature) {
  if (bias != 0.0f) y = fadd(y, bias);
  if (in_context && p.repetition != 1.0f) y = y > 0.0f ? fdiv(y, p.repetition) : fmul(y, p.repetition);
  if (output_count > 0) {
    if (p.frequency != 0.0f) y = fsub(y, fmul(p.frequency, static_cast<float>(output_count)));
    if (p.presence != 0.0f) y = fsub(y, p.presence);
  }
  return inv_temperature != 1.0f ? fmul(y, inv_temperature) : y;
}

// A key whose unsigned order is the order of f32 values, -0 and +0 alike. NaN never gets here: the row is an error.
ISOBIT_HD uint32_t order_key(float z) {
  const uint32_t u = bits(fadd(z, 0.0f));
  return (u >> 31) != 0 ? ~u : u | 0x80000000u;
}

// Order of candidates: larger value first, then lower id.
ISOBIT_HD uint64_t candidate_key(float z, uint32_t id) {
  return (static_cast<uint64_t>(order_key(z)) << 32) | (0xffffffffu - id);
}

// RN(p·2^32), p in (0, 1), at least 1 so that the best token always stays. p = 1 is no filter and never gets here.
ISOBIT_HD uint64_t top_p_threshold(float p) {
  const uint64_t t = static_cast<uint64_t>(round_even(dmul(static_cast<double>(p), 0x1p32)));
  return t == 0 ? 1 : t;
}

// top-p keeps a token while mass_before · 2^32 < threshold · total, in 128 bits; total is the mass that top-k left.
ISOBIT_HD bool top_p_keeps(uint64_t mass_before, uint64_t threshold, uint64_t total) {
  const uint64_t high = mass_before >> 32, low = mass_before << 32;  // mass_before · 2^32
  const uint64_t a = threshold >> 32, b = threshold & 0xffffffffu, c = total >> 32, d = total & 0xffffffffu;
  const uint64_t low_product = b * d, middle = a * d + (low_product >> 32), middle2 = b * c + (middle & 0xffffffffu);
  const uint64_t product_high = a * c + (middle >> 32) + (middle2 >> 32);
  const uint64_t product_low = (middle2 << 32) | (low_product & 0xffffffffu);
  return high < product_high || (high == product_high && low < product_low);
}

// min-p keeps a token whose relative_log2 is at least log2(min_p), rounded once to f32. min_p in (0, 1).
ISOBIT_HD float min_p_threshold(float min_p) {
  return static_cast<float>(dmul(ln(static_cast<double>(min_p)), kInvLn2));
}
ISOBIT_HD bool min_p_keeps(float z, float zmax, float threshold) { return relative_log2(z, zmax) >= threshold; }

}  // namespace isobit::numerics
