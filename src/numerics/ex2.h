#pragma once
// N5. ex2: 2^x as Hopper's ex2.approx.ftz.f32 computes it, for all 2^32 inputs. |x| is taken as fixed point with 23
// fraction bits (cut toward zero); its integer part n is the result's exponent, the top 6 fraction bits choose a
// segment, the low 17 go through a quadratic in integers.
#include "numerics/ieee.h"

namespace isobit::numerics {

struct Ex2Segment {
  int32_t c0, c1, c2;
};

#ifdef __CUDACC__
__host__ __device__
#endif
    constexpr Ex2Segment
    ex2_segment(uint32_t s) {
  constexpr Ex2Segment table[64] = {
      {33554435, 22713, 494}, {33919818, 22960, 501}, {34289182, 23210, 506}, {34662565, 23463, 511},
      {35040018, 23718, 518}, {35421577, 23977, 521}, {35807292, 24238, 527}, {36197209, 24502, 532},
      {36591372, 24768, 541}, {36989825, 25038, 546}, {37392616, 25311, 551}, {37799797, 25586, 559},
      {38211409, 25865, 564}, {38627504, 26147, 568}, {39048131, 26431, 577}, {39473337, 26719, 583},
      {39903173, 27010, 589}, {40337690, 27304, 596}, {40776937, 27602, 600}, {41220970, 27902, 609},
      {41669836, 28206, 615}, {42123592, 28513, 622}, {42582286, 28824, 627}, {43045977, 29138, 633},
      {43514717, 29455, 641}, {43988561, 29776, 647}, {44467565, 30100, 655}, {44951786, 30428, 661},
      {45441278, 30759, 670}, {45936101, 31094, 677}, {46436314, 31432, 686}, {46941971, 31775, 691},
      {47453135, 32121, 699}, {47969867, 32471, 705}, {48492225, 32824, 715}, {49020269, 33182, 721},
      {49554065, 33543, 730}, {50093674, 33908, 739}, {50639159, 34277, 748}, {51190582, 34651, 753},
      {51748011, 35028, 763}, {52311510, 35409, 773}, {52881146, 35795, 779}, {53456983, 36185, 787},
      {54039091, 36579, 796}, {54627538, 36977, 806}, {55222393, 37380, 813}, {55823725, 37787, 822},
      {56431607, 38198, 833}, {57046106, 38614, 842}, {57667297, 39035, 849}, {58295254, 39460, 858},
      {58930048, 39889, 870}, {59571754, 40324, 877}, {60220447, 40763, 887}, {60876205, 41207, 896},
      {61539104, 41655, 909}, {62209220, 42109, 917}, {62886634, 42568, 925}, {63571424, 43031, 938},
      {64263672, 43500, 946}, {64963458, 43973, 959}, {65670863, 44452, 969}, {66385972, 44936, 980},
  };
  return table[s];
}

constexpr int64_t kEx2Round = 3205496832;

namespace detail {

// d² of a 17-bit d, without the partial products that fall in columns below 19 (the hardware's squarer leaves them
// out).
ISOBIT_HD uint64_t truncated_square(uint32_t d) {
  uint64_t sum = 0;
  for (int a = 0; a < 17; a++) {
    if (((d >> a) & 1) == 0) continue;
    if (2 * a >= 19) sum += uint64_t{1} << (2 * a);
    // the pair (a, b), b < a, stands in column a + b + 1
    const uint32_t below = d & ((1u << a) - 1);
    const int first = 18 - a;
    if (first < 17) sum += static_cast<uint64_t>(first > 0 ? below >> first << first : below) << (a + 1);
  }
  return sum;
}

}  // namespace detail

// NaN: 0x7fffffff. Zero or a subnormal x: 1. Results below 2^-126: +0. From 128 on: +infinity.
ISOBIT_HD float ex2(float x) {
  const uint32_t u = bits(x), exponent = (u >> 23) & 255, mantissa = u & 0x7fffff;
  const bool negative = (u >> 31) != 0;
  if (exponent == 255 && mantissa != 0) return from_bits(kNaN32);
  if (exponent == 0) return 1.0f;
  if (exponent >= 127 + 8 || (exponent == 127 + 7 && !negative)) return negative ? 0.0f : from_bits(kInf32);
  const uint32_t significand = mantissa | 0x800000;
  const int shift = static_cast<int>(exponent) - 127;
  const int64_t fixed = shift >= 0    ? static_cast<int64_t>(significand) << shift
                        : shift > -24 ? static_cast<int64_t>(significand >> -shift)
                                      : 0;
  // A negative x with a fraction takes the one's complement, an integer the negation.
  const int64_t q = !negative ? fixed : (fixed & 0x7fffff) == 0 ? -fixed : ~fixed;
  int n = static_cast<int>(q >> 23);
  const uint32_t f = static_cast<uint32_t>(q & 0x7fffff), d = f & 0x1ffff;
  const Ex2Segment s = ex2_segment(f >> 17);
  int64_t y = ((static_cast<int64_t>(s.c0) << 32) + kEx2Round + ((static_cast<int64_t>(s.c1) * 4 * d) << 17) +
               static_cast<int64_t>(s.c2) * static_cast<int64_t>(detail::truncated_square(d))) >>
              34;
  if (y >= (1 << 24)) {
    y = 1 << 23;
    n++;
  }
  if (n < -126) return 0.0f;
  if (n > 127) return from_bits(kInf32);
  return from_bits((static_cast<uint32_t>(n + 127) << 23) | (static_cast<uint32_t>(y) & 0x7fffff));
}

}  // namespace isobit::numerics
