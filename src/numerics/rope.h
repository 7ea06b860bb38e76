#pragma once
// N9. Rotary embedding. Frequencies and angles in double, cos and sin rounded once to f32 (tables made on the host);
// the rotation in f32 with two multiplies and two FMAs a pair.
#include "numerics/f64.h"

namespace isobit::numerics {

// θ^(-2i/dim), i in [0, dim/2). Scaled variants divide or interpolate this in double (docs/numerics.md N9).
ISOBIT_HD double rope_frequency(int i, int dim, double theta) {
  return exp(dmul(-ddiv(2.0 * i, static_cast<double>(dim)), ln(theta)));
}

struct RopeEntry {
  float cos, sin;
};

// magnitude: 1 but for yarn and longrope, which scale cos and sin.
ISOBIT_HD RopeEntry rope_entry(int64_t position, double frequency, double magnitude) {
  const SinCos a = sin_cos(dmul(static_cast<double>(position), frequency));
  return {static_cast<float>(dmul(a.cos, magnitude)), static_cast<float>(dmul(a.sin, magnitude))};
}

struct Rotated {
  float x0, x1;
};

// The pair (x0, x1) turned by the entry's angle: x0·cos - x1·sin, x1·cos + x0·sin.
ISOBIT_HD Rotated rope_rotate(float x0, float x1, RopeEntry e) {
  return {ffma(x0, e.cos, -fmul(x1, e.sin)), ffma(x1, e.cos, fmul(x0, e.sin))};
}

}  // namespace isobit::numerics
