#pragma once
// N25. Rotary frequencies of models whose context was stretched after training: f' from N9's f, all in double and in
// the order written, so that every machine makes the same tables.
#include "numerics/f64.h"
#include "numerics/rope.h"

namespace isobit::numerics {

constexpr double kTwoPi = 0x1.921fb54442d18p+2;

// Every frequency over the factor (position interpolation, Chen et al. 2023).
ISOBIT_HD double rope_linear(double frequency, double factor) { return ddiv(frequency, factor); }

// LongRoPE: a factor for each frequency (Ding et al. 2024).
ISOBIT_HD double rope_long(double frequency, float factor) { return ddiv(frequency, static_cast<double>(factor)); }

// Llama 3.1: short waves stay, long ones are interpolated, between the two a mean by their number of turns in the
// original context.
ISOBIT_HD double rope_llama3(double frequency, double factor, double low, double high, double original) {
  const double turns = ddiv(original, ddiv(kTwoPi, frequency));  // in the original context
  if (turns > high) return frequency;
  const double slow = ddiv(frequency, factor);
  if (turns < low) return slow;
  const double smooth = ddiv(dadd(turns, -low), dadd(high, -low));
  return dadd(dmul(dadd(1.0, -smooth), slow), dmul(smooth, frequency));
}

// YaRN (Peng et al. 2023): the frequencies up to index `low` stay, those from `high` on are interpolated.
struct YarnRange {
  double low, high;
};

// The index whose wave turns `turns` times in the original context, between the frequencies as it may be.
ISOBIT_HD double yarn_index(double turns, int dim, double theta, double original) {
  return ddiv(dmul(static_cast<double>(dim), ln(ddiv(original, dmul(turns, kTwoPi)))), dmul(2.0, ln(theta)));
}

ISOBIT_HD double whole_below(double x) {
  const double r = round_even(x);
  return r > x ? dadd(r, -1.0) : r;
}

// fast, slow: turns in the original context (32 and 1 unless a file says otherwise). whole: both ends are taken to
// whole indices, outward.
ISOBIT_HD YarnRange yarn_range(double fast, double slow, int dim, double theta, double original, bool whole) {
  double low = yarn_index(fast, dim, theta, original), high = yarn_index(slow, dim, theta, original);
  if (whole) {
    low = whole_below(low);
    high = -whole_below(-high);
  }
  low = low < 0.0 ? 0.0 : low;
  high = high > dim - 1 ? dim - 1 : high;
  return {low, low == high ? dadd(high, 0.001) : high};
}

ISOBIT_HD double rope_yarn(double frequency, int i, double factor, YarnRange range) {
  double ramp = ddiv(dadd(static_cast<double>(i), -range.low), dadd(range.high, -range.low));
  ramp = ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
  return dadd(dmul(ddiv(frequency, factor), ramp), dmul(frequency, dadd(1.0, -ramp)));
}

// What yarn multiplies cos and sin by: 0.1·m·ln factor + 1, or 1 where nothing is stretched.
ISOBIT_HD double yarn_magnitude(double factor, double m) {
  return factor <= 1.0 ? 1.0 : dadd(dmul(dmul(0.1, m), ln(factor)), 1.0);
}

// LongRoPE's: √(1 + ln factor / ln original).
ISOBIT_HD double long_magnitude(double factor, double original) {
  return factor <= 1.0 ? 1.0 : dsqrt(dadd(1.0, ddiv(ln(factor), ln(original))));
}

}  // namespace isobit::numerics
