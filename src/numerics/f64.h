#pragma once
// N6. ln, exp, sin and cos in double, from IEEE operations alone, so that no C library decides a bit.
#include "numerics/ieee.h"

namespace isobit::numerics {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;
constexpr double kLn2Low = 0x1.abc9e3b39803fp-56;  // ln 2 - kLn2
constexpr double kInvLn2 = 0x1.71547652b82fep+0;

// Round to nearest integer, ties to even; |x| < 2^51.
ISOBIT_HD double round_even(double x) { return dadd(dadd(x, 0x1.8p52), -0x1.8p52); }

// ln x for positive normal x: x = m·2^e, m in [√½, √2), s = (m-1)/(m+1), ln m = 2·(s + s³/3 + … + s^19/19).
ISOBIT_HD double ln(double x) {
  uint64_t u = bits64(x);
  int e = static_cast<int>(u >> 52) - 1023;
  u = (u & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL;
  if (u >= 0x3ff6a09e667f3bcdULL) {  // m at least √2: halve it
    u -= 0x0010000000000000ULL;
    e++;
  }
  const double m = from_bits64(u);
  const double s = ddiv(dadd(m, -1.0), dadd(m, 1.0)), z = dmul(s, s);
  double p = 1.0 / 19;
  p = dfma(p, z, 1.0 / 17);
  p = dfma(p, z, 1.0 / 15);
  p = dfma(p, z, 1.0 / 13);
  p = dfma(p, z, 1.0 / 11);
  p = dfma(p, z, 1.0 / 9);
  p = dfma(p, z, 1.0 / 7);
  p = dfma(p, z, 1.0 / 5);
  p = dfma(p, z, 1.0 / 3);
  p = dfma(p, z, 1.0);
  return dfma(static_cast<double>(e), kLn2, dmul(dadd(s, s), p));
}

// e^x for |x| < 700: x = k·ln 2 + r, Taylor's series of e^r to r^13.
ISOBIT_HD double exp(double x) {
  const double k = round_even(dmul(x, kInvLn2));
  const double r = dfma(-k, kLn2Low, dfma(-k, kLn2, x));
  double p = 1.0 / 6227020800.0;
  p = dfma(p, r, 1.0 / 479001600.0);
  p = dfma(p, r, 1.0 / 39916800.0);
  p = dfma(p, r, 1.0 / 3628800.0);
  p = dfma(p, r, 1.0 / 362880.0);
  p = dfma(p, r, 1.0 / 40320.0);
  p = dfma(p, r, 1.0 / 5040.0);
  p = dfma(p, r, 1.0 / 720.0);
  p = dfma(p, r, 1.0 / 120.0);
  p = dfma(p, r, 1.0 / 24.0);
  p = dfma(p, r, 1.0 / 6.0);
  p = dfma(p, r, 0.5);
  p = dfma(p, r, 1.0);
  p = dfma(p, r, 1.0);
  return dmul(p, from_bits64(static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52));
}

struct SinCos {
  double sin, cos;
};

// |x| < 2^30: x = k·π/2 + r in two steps, Taylor's series of r to r^17 and r^18.
ISOBIT_HD SinCos sin_cos(double x) {
  const double k = round_even(dmul(x, 0x1.45f306dc9c883p-1));
  const double r = dfma(-k, 0x1.1a62633145c07p-54, dfma(-k, 0x1.921fb54442d18p+0, x)), z = dmul(r, r);
  double s = 1.0 / 355687428096000.0;
  s = dfma(s, z, -1.0 / 1307674368000.0);
  s = dfma(s, z, 1.0 / 6227020800.0);
  s = dfma(s, z, -1.0 / 39916800.0);
  s = dfma(s, z, 1.0 / 362880.0);
  s = dfma(s, z, -1.0 / 5040.0);
  s = dfma(s, z, 1.0 / 120.0);
  s = dfma(s, z, -1.0 / 6.0);
  s = dfma(dmul(s, z), r, r);
  double c = -1.0 / 6402373705728000.0;
  c = dfma(c, z, 1.0 / 20922789888000.0);
  c = dfma(c, z, -1.0 / 87178291200.0);
  c = dfma(c, z, 1.0 / 479001600.0);
  c = dfma(c, z, -1.0 / 3628800.0);
  c = dfma(c, z, 1.0 / 40320.0);
  c = dfma(c, z, -1.0 / 720.0);
  c = dfma(c, z, 1.0 / 24.0);
  c = dfma(c, z, -0.5);
  c = dfma(c, z, 1.0);
  switch (static_cast<int64_t>(k) & 3) {
    case 0:
      return {s, c};
    case 1:
      return {c, -s};
    case 2:
      return {-s, -c};
    default:
      return {-c, s};
  }
}

}  // namespace isobit::numerics
