// Passes over a row of logits. Sums are of integers and maxima have no order, so that lanes may go as they like.
#include "ops/cpu/vocabulary.h"

#include <cmath>
#include <limits>

#include "numerics/sampling.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/vocabulary.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

VocabularyScan Scan(const float* y, int64_t n, float factor, float* z) {
  const F32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, factor), infinity = hn::Set(d, std::numeric_limits<float>::infinity());
  auto largest = hn::Set(d, kMinusInf);
  auto good = hn::Eq(scale, scale);
  VocabularyScan s{kMinusInf, true};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto raw = hn::LoadU(d, y + i);
    const auto v = factor == 1.0f ? raw : hn::Mul(raw, scale);
    if (z != nullptr) hn::StoreU(v, d, z + i);
    good = hn::And(good, hn::Lt(v, infinity));  // false for NaN too
    largest = hn::IfThenElse(hn::Gt(v, largest), v, largest);
  }
  s.ok = hn::AllTrue(d, good);
  s.largest = std::max(s.largest, LargestLane(d, largest));
  for (; i < n; i++) {
    const float v = factor == 1.0f ? y[i] : numerics::fmul(y[i], factor);
    if (z != nullptr) z[i] = v;
    s.ok &= v < std::numeric_limits<float>::infinity();
    s.largest = v > s.largest ? v : s.largest;
  }
  s.ok &= std::isfinite(s.largest);
  return s;
}

int32_t FindFirst(const float* z, int64_t n, float largest) {
  const F32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto wanted = hn::Set(d, largest);
  int64_t i = 0;
  while (i + lanes <= n && hn::AllFalse(d, hn::Eq(hn::LoadU(d, z + i), wanted))) i += lanes;
  for (; i < n; i++) {
    if (z[i] == largest) return static_cast<int32_t>(i);
  }
  return -1;
}

// ex2 on lanes, cut to multiples of 2^-44, and summed in f64: 2^9 of them are exact there, and are then made an
// integer.
uint64_t SumMasses(const float* z, int64_t n, float largest) {
  uint64_t sum = 0;
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  constexpr int kLeast = 127 - numerics::kMassBits, kWhole = kLeast + 23;  // exponents: of a mass of 1; nothing to cut
  constexpr int kExact = 1 << (53 - numerics::kMassBits);
  const F32 d;
  const hn::Half<F32> dh;
  const hn::Repartition<double, F32> d64;
  const U32Of<F32> du;
  const I32Of<F32> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zmax = hn::Set(d, largest), log2e = hn::Set(d, numerics::kLog2E);
  while (i + lanes <= n) {
    auto low = hn::Zero(d64), high = low;
    for (int terms = 0; terms < kExact && i + lanes <= n; terms++, i += lanes) {
      const auto t = hn::Mul(hn::Sub(hn::LoadU(d, z + i), zmax), log2e);
      if (hn::AllFalse(d, hn::Ge(t, hn::Set(d, -45.0f)))) continue;  // no mass
      const auto u = hn::BitCast(du, Ex2(d, t));
      const auto exponent = hn::BitCast(di, hn::ShiftRight<23>(u));
      const auto cut = hn::Min(hn::Max(hn::Sub(hn::Set(di, kWhole), exponent), hn::Zero(di)), hn::Set(di, 31));
      const auto kept = hn::BitCast(di, hn::And(u, hn::Shl(hn::Set(du, ~0u), hn::BitCast(du, cut))));
      const auto masses = hn::BitCast(d, hn::IfThenZeroElse(hn::Lt(exponent, hn::Set(di, kLeast)), kept));
      low = hn::Add(low, hn::PromoteTo(d64, hn::LowerHalf(dh, masses)));
      high = hn::Add(high, hn::PromoteTo(d64, hn::UpperHalf(dh, masses)));
    }
    HWY_ALIGN double parts[8];
    for (const auto& part : {low, high}) {
      hn::Store(part, d64, parts);
      for (size_t j = 0; j < hn::Lanes(d64); j++)
        sum += static_cast<uint64_t>(parts[j] * (uint64_t{1} << numerics::kMassBits));
    }
  }
#endif
  for (; i < n; i++) sum += numerics::mass(z[i], largest);
  return sum;
}

struct Best {
  int32_t token = -1;
  double score = -std::numeric_limits<double>::infinity();

  void offer(int32_t id, float z, uint32_t r) {
    const double s = numerics::gumbel_score(z, r);
    if (s > score) {
      score = s;
      token = id;
    }
  }
};

#if HWY_TARGET != HWY_SCALAR
// High and low halves of the products x·y, 32 bits each.
template <class DU, class V = hn::Vec<DU>>
HWY_INLINE void MulWide(DU du, V x, uint32_t y, V& high, V& low) {
  const auto factor = hn::Set(du, y);
  const auto even = hn::BitCast(du, hn::MulEven(x, factor));
  const auto odd = hn::BitCast(du, hn::MulEven(hn::ShiftRightLanes<1>(du, x), factor));
  low = hn::OddEven(hn::DupEven(odd), even);
  high = hn::OddEven(odd, hn::DupOdd(even));
}
#endif

// N15. The exact score, two logarithms in double, is taken only where a bound says that it may win. With u = (r +
// ½)/2^32, -ln(1 - u) ≥ u, so the noise is at most -ln u = ln 2·(32 - log2(r + ½)); and log2 of a float is at least its
// exponent plus its fraction (the logarithm is concave). r as f32 may be rounded up by 2^-24: `kSlack` covers that and
// the rounding of the bound itself.
int32_t SampleGumbel(const float* z, int64_t n, float largest, const Noise& noise) {
  constexpr float kReach = 22.9f;  // above the largest noise
  Best best;
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const F32 d;
  const I32Of<F32> di;
  const U32Of<F32> du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr float kLn2 = 0.693147182f, kSlack = 1e-3f;
  // A score's bound is taken in f32 relative to the best: z - largest is exact enough where it matters.
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    hn::Vec<F32> v[4];
    hn::LoadInterleaved4(d, z + i, v[0], v[1], v[2], v[3]);
    const auto most = hn::Max(hn::Max(v[0], v[1]), hn::Max(v[2], v[3]));
    const float floor = static_cast<float>(best.score - static_cast<double>(largest)) - kSlack;
    const auto zmax = hn::Set(d, largest);
    if (hn::AllFalse(d, hn::Ge(hn::Add(hn::Sub(most, zmax), hn::Set(d, kReach)), hn::Set(d, floor)))) continue;
    auto c0 = hn::Iota(du, static_cast<uint32_t>(i / 4)), c1 = hn::Set(du, noise.position);
    auto c2 = hn::Set(du, static_cast<uint32_t>(noise.purpose)), c3 = hn::Set(du, noise.choice);
    uint32_t k0 = static_cast<uint32_t>(noise.seed), k1 = static_cast<uint32_t>(noise.seed >> 32);
    for (int round = 0; round < numerics::kPhiloxRounds; round++) {
      hn::Vec<U32Of<F32>> high0, low0, high1, low1;
      MulWide(du, c0, 0xD2511F53u, high0, low0);
      MulWide(du, c2, 0xCD9E8D57u, high1, low1);
      c0 = hn::Xor(hn::Xor(high1, c1), hn::Set(du, k0));
      c1 = low1;
      c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(du, k1));
      c3 = low0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const hn::Vec<U32Of<F32>> words[4] = {c0, c1, c2, c3};
    auto any = hn::Lt(zmax, zmax);
    for (int w = 0; w < 4; w++) {
      // r as f32, from its upper 31 bits: halved, and at least ¼ in place of 0 (r + ½ is at least ½).
      const auto half = hn::ConvertTo(d, hn::BitCast(di, hn::ShiftRight<1>(words[w])));
      const auto x = hn::BitCast(di, hn::Max(half, hn::Set(d, 0.25f)));
      const auto log2 = hn::Mul(hn::ConvertTo(d, hn::Sub(x, hn::Set(di, 127 << 23))), hn::Set(d, 0x1p-23f));
      const auto bound = hn::Mul(hn::Sub(hn::Set(d, 31.0f), log2), hn::Set(d, kLn2));
      const auto score = hn::Add(hn::Sub(v[w], zmax), bound);
      any = hn::Or(any, hn::Ge(score, hn::Set(d, floor)));
    }
    if (hn::AllFalse(d, any)) continue;
    HWY_ALIGN uint32_t r[64];
    for (int w = 0; w < 4; w++) hn::Store(words[w], du, r + w * lanes);
    for (int64_t j = 0; j < 4 * lanes; j++) {
      if (static_cast<double>(z[i + j]) + kReach < best.score) continue;
      best.offer(static_cast<int32_t>(i + j), z[i + j], r[j % 4 * lanes + j / 4]);
    }
  }
#else
  (void)largest;
#endif
  for (; i < n; i += 4) {
    const numerics::PhiloxWords w = numerics::philox4x32(
        noise.seed,
        {{static_cast<uint32_t>(i / 4), noise.position, static_cast<uint32_t>(noise.purpose), noise.choice}});
    for (int64_t j = i; j < n && j < i + 4; j++) {
      if (static_cast<double>(z[j]) + kReach < best.score) continue;
      best.offer(static_cast<int32_t>(j), z[j], w.w[j - i]);
    }
  }
  return best.token;
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(Scan);
HWY_EXPORT(FindFirst);
HWY_EXPORT(SumMasses);
HWY_EXPORT(SampleGumbel);

VocabularyScan scan_logits(int64_t simd, const float* y, int64_t n, float factor, float* z) {
  return for_target(HWY_DISPATCH_TABLE(Scan), simd)(y, n, factor, z);
}
int32_t find_first(int64_t simd, const float* z, int64_t n, float largest) {
  return for_target(HWY_DISPATCH_TABLE(FindFirst), simd)(z, n, largest);
}
uint64_t sum_masses(int64_t simd, const float* z, int64_t n, float largest) {
  return for_target(HWY_DISPATCH_TABLE(SumMasses), simd)(z, n, largest);
}
int32_t sample_gumbel(int64_t simd, const float* z, int64_t n, float largest, const Noise& noise) {
  return for_target(HWY_DISPATCH_TABLE(SampleGumbel), simd)(z, n, largest, noise);
}

}  // namespace isobit::cpu
#endif
