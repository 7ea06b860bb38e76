// kTwelve panels (twelve.h) on vectors: the chain of one row, unpacking and packing.
// Include after hwy/highway.h inside a file compiled by foreach_target (per-target include guard below).
#if defined(ISOBIT_OPS_CPU_TWELVE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOBIT_OPS_CPU_TWELVE_INL_H_
#undef ISOBIT_OPS_CPU_TWELVE_INL_H_
#else
#define ISOBIT_OPS_CPU_TWELVE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "numerics/ieee.h"
#include "ops/cpu/gemm_kernel.h"
#include "ops/cpu/simd-inl.h"
#include "ops/cpu/twelve.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

#if HWY_TARGET != HWY_SCALAR
// The sixteen words (bf16) of a panel's outputs for one k, or eight of them where vectors are short. With AVX-512 too:
// the interleaved order within a row suits no longer vector.
using W16 = hn::CappedTag<uint16_t, kPanel>;
using W8 = hn::Repartition<uint8_t, W16>;
using WU = hn::Repartition<uint32_t, W16>;
using WI = hn::Repartition<int32_t, W16>;
using WF = hn::Repartition<float, W16>;
using VW = hn::Vec<W16>;

// Four k of a step, from the j-th row of codes: words[i] = weights of k = 4j + i.
HWY_INLINE void LoadFour(const uint8_t* step, const uint8_t* table, int j, VW* words) {
  const W8 d8;
  const W16 d16;
  const auto high = hn::LoadDup128(d8, table);
  const auto fifteen = hn::Set(d8, 15);
  const auto codes = hn::LoadU(d8, step + 256 + 32 * j);
  const auto x0 = hn::LoadU(d8, step + 64 * j), x1 = hn::LoadU(d8, step + 64 * j + 32);
  const auto h0 = hn::TableLookupBytes(high, hn::And(codes, fifteen));
  const auto up = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, codes)));
  const auto h1 = hn::TableLookupBytes(high, hn::And(up, fifteen));
  words[0] = hn::BitCast(d16, hn::InterleaveLower(d8, x0, h0));
  words[1] = hn::BitCast(d16, hn::InterleaveUpper(d8, x0, h0));
  words[2] = hn::BitCast(d16, hn::InterleaveLower(d8, x1, h1));
  words[3] = hn::BitCast(d16, hn::InterleaveUpper(d8, x1, h1));
}

// A run of groups of one panel and the activations that they meet.
struct TwelveRun {
  const uint8_t* data;
  const uint8_t* bases;  // of each group
  int64_t steps;         // at least 1
  const float* value;
  const uint32_t* below;  // of each k: how far under kActivationExponentMax, in both of a word's high bytes
  float* acc;             // kPanel sums so far
};

// Chains of one row over runs, one after the other without a seam: `block` is the first of the outputs taken at once.
//
// The step is gemm_kernel.cpp's, in words of 16 bits where that saves half: the largest exponent, and the scale, which
// is added to a weight's exponent instead of multiplied to the product. So, with E at least kLeastExponent:
//   w·2^(25-E)·a: exponents of w from -26 to 25 and of zeros (kZeroExponent) stay inside f32's normal range while
//   E <= 61 (c is under 2^56: weights under 2^26, activations under 2^16, K under 2^14 more), a zero's product stays
//   under 2^-1, and so does that of any activation too small for `below` to know.
// A lane whose E is not above that, all its products and c being under 2^-46, makes its run's result void.
// Between steps c stays what the sum was, an integer t = c·2^(25-E): the next step multiplies it once, by 2^(E-E'), and
// takes c's exponent from t's, so that neither waits for c itself (2.5% of a step).
// Instructions of the vector unit for 16 products of 16 outputs (two vectors): 84 for words and E, 144 for products, 18
// for the step: 7.7 for 8 products. The words of the next step, which may be the next run's first, are made where the
// chain from c to the first product that needs its scale leaves the vector unit idle: half before this step's products,
// half after (6% of a decoded token against making them between the products).
struct TwelveStream {
  static constexpr int kLeastExponent = 127 - 48;  // biased
  static constexpr int kAhead = 4096;              // bytes: what two memory accesses take
  static constexpr int kLift = kActivationExponentMax - 127;

  const TwelveRun* runs;
  int count;  // 1 to 32

  HWY_INLINE static VW Exponents(const VW* words, const uint32_t* below, VW largest) {
    const W16 d16;
    ISOBIT_UNROLL(4)
    for (int i = 0; i < 4; i++) {
      const VW magnitude = hn::Add(words[i], words[i]);
      largest = hn::Max(largest, hn::SaturatedSub(magnitude, hn::BitCast(d16, hn::Set(WU(), below[i]))));
    }
    return largest;
  }

  // A quarter of a step's words: k = 4j to 4j + 3.
  HWY_INLINE static void Words(const uint8_t* step, const uint8_t* table, const uint32_t* below, int j, uint16_t* to,
                               VW& largest) {
    VW w[4];
    LoadFour(step, table, j, w);
    largest = Exponents(w, below + 4 * j, largest);
    ISOBIT_UNROLL(4)
    for (size_t i = 0; i < 4; i++) hn::Store(w[i], W16(), to + (static_cast<size_t>(4 * j) + i) * kPanel);
  }

  // The rounding mode must be toward zero. Returns a bit for each run: its sums are exact.
  HWY_INLINE uint32_t Run(int block) const {
    const W16 d16;
    const WU du;
    const WF df;
    HWY_ALIGN uint16_t buffer[2 * 16 * kPanel];
    const hn::RebindToSigned<W16> di16;
    const auto high = hn::Set(du, 0xffff0000);
    const VW exponents = hn::Set(d16, 0x7f80), top = hn::Set(d16, 152 << 7), one = hn::Set(d16, 127 << 7);
    uint16_t *words = buffer, *next_words = buffer + 16 * kPanel;
    VW largest = hn::Zero(d16);
    for (int j = 0; j < 4; j++) {
      Words(runs[0].data + 2 * block, kTwelve.high[runs[0].bases[0]], runs[0].below, j, words, largest);
    }
    uint32_t exact = 0;
    for (int i = 0; i < count; i++) {
      const TwelveRun& run = runs[i];
      const TwelveRun& following = runs[std::min(i + 1, count - 1)];
      const uint8_t* const end = run.data + run.steps * kTwelveStep;
      // Reading goes on where the next run lies, or, after the last, behind it.
      const std::ptrdiff_t jump = i + 1 < count ? following.data - end : 0;
      VW shift = hn::Zero(d16), most = shift;
      hn::Vec<WF> t0, t1;  // c·2^(25 - E), E the step's before: an integer
      hn::LoadInterleaved2(df, run.acc + block, t0, t1);
      for (int64_t s = 0; s < run.steps; s++) {
        const bool last = s + 1 == run.steps;
        const uint8_t* step = run.data + s * kTwelveStep;
        const uint8_t* next = (last ? following.data : step + kTwelveStep) + 2 * block;
        const uint8_t* table = kTwelve.high[last ? following.bases[0] : run.bases[(s + 1) / 2]];
        const uint32_t* below = last ? following.below : run.below + 16 * (s + 1);
        const float* a = run.value + 16 * s;
        const uint8_t* ahead = step + kAhead;
        if (ahead >= end) ahead += jump;
        for (int at = 0; at < kTwelveStep; at += 64) hwy::Prefetch(ahead + at);
        // 25 - E in the place of an exponent, from the products' exponents and from c's.
        const VW products = hn::And(hn::ShiftRight<1>(hn::Add(largest, hn::Set(d16, kLift << 8))), exponents);
        const VW from_products = hn::Sub(top, hn::Max(products, hn::Set(d16, kLeastExponent << 7)));
        const VW t = hn::OddEven(hn::BitCast(d16, t1), hn::BitCast(d16, hn::ShiftRight<16>(hn::BitCast(du, t0))));
        const VW from_c = hn::Sub(hn::Add(top, shift), hn::And(t, exponents));
        const VW old = shift;
        shift = hn::BitCast(d16, hn::Min(hn::BitCast(di16, from_products), hn::BitCast(di16, from_c)));
        most = hn::BitCast(d16, hn::Max(hn::BitCast(di16, most), hn::BitCast(di16, shift)));
        const VW ratio = hn::Sub(shift, hn::Sub(old, one));
        auto s0 = Truncate(df, hn::Mul(t0, hn::BitCast(df, hn::ShiftLeft<16>(hn::BitCast(du, ratio)))));
        auto s1 = Truncate(df, hn::Mul(t1, hn::BitCast(df, hn::And(hn::BitCast(du, ratio), high))));
        largest = hn::Zero(d16);
        const auto prepare = [&](int j) HWY_ATTR {
          Words(next, table, below, j, next_words, largest);
          largest = Settle(largest);
        };
        prepare(0);
        prepare(1);
        ISOBIT_UNROLL(4)
        for (int j = 0; j < 4; j++) {
          ISOBIT_UNROLL(4)
          for (size_t l = 0; l < 4; l++) {
            const size_t k = static_cast<size_t>(4 * j) + l;
            const auto w = hn::BitCast(du, hn::Add(hn::Load(d16, words + k * kPanel), shift));
            const auto x = hn::Set(df, a[k]);
            s0 = Settle(hn::Add(s0, Truncate(df, hn::Mul(hn::BitCast(df, hn::ShiftLeft<16>(w)), x))));
            s1 = Settle(hn::Add(s1, Truncate(df, hn::Mul(hn::BitCast(df, hn::And(w, high)), x))));
          }
        }
        prepare(2);
        prepare(3);
        t0 = CutToFloat(df, s0);
        t1 = CutToFloat(df, s1);
        std::swap(words, next_words);
      }
      const VW down = hn::Sub(one, shift);  // 2^(E - 25)
      const auto c0 = hn::Mul(t0, hn::BitCast(df, hn::ShiftLeft<16>(hn::BitCast(du, down))));
      const auto c1 = hn::Mul(t1, hn::BitCast(df, hn::And(hn::BitCast(du, down), high)));
      hn::StoreInterleaved2(c0, c1, df, run.acc + block);
      const auto least = hn::Set(di16, (152 - kLeastExponent) << 7);
      exact |= hn::AllTrue(di16, hn::Lt(hn::BitCast(di16, most), least)) ? 1u << i : 0u;
    }
    return exact;
  }
};

#endif

// The words of one group in order: [k][output].
HWY_INLINE void TwelveWords(const uint8_t* group, uint8_t base, uint16_t* words) {
#if HWY_TARGET == HWY_SCALAR
  for (int k = 0; k < kGroup; k++) {
    for (int n = 0; n < kPanel; n++) {
      const uint8_t* step = group + k / 16 * kTwelveStep;
      const int code = (step[twelve_code(k % 16, n)] >> twelve_shift(k)) & 15;
      const int word = kTwelve.high[base][code] << 8 | step[twelve_low(k % 16, n)];
      words[k * kPanel + n] = (word & 0x7f80) == kZeroExponent << 7 ? uint16_t{0} : static_cast<uint16_t>(word);
    }
  }
#else
  const W16 d16;
  for (size_t j = 0; j < kGroup / 4; j++) {
    const uint8_t* step = group + j / 4 * kTwelveStep;
    for (size_t block = 0; block < kPanel; block += hn::Lanes(d16)) {
      VW w[4];
      LoadFour(step + 2 * block, kTwelve.high[base], static_cast<int>(j % 4), w);
      for (size_t i = 0; i < 4; i++) {
        const VW exponent = hn::And(w[i], hn::Set(d16, 0x7f80));
        const auto zero = hn::Eq(exponent, hn::Set(d16, kZeroExponent << 7));
        hn::StoreU(hn::IfThenZeroElse(zero, w[i]), d16, words + (4 * j + i) * kPanel + block);
      }
    }
  }
#endif
}

// One group of bf16 words [k][output]. False: it has too many binades.
HWY_INLINE bool PackTwelveGroup(const uint16_t* words, uint8_t* group, uint8_t* base) {
  uint16_t low = 0x7fff, high = 0, zeros = 0;
  for (int i = 0; i < kSpill; i++) {
    const auto magnitude = static_cast<uint16_t>(words[i] & 0x7fff);
    const uint16_t zero = magnitude == 0 ? 1 : 0;
    zeros = std::max(zeros, zero);
    high = std::max(high, magnitude);
    low = std::min(low, zero != 0 ? uint16_t{0x7fff} : magnitude);
  }
  if (high == 0) low = 50 << 8;
  const int first = low >> 8, last = std::max(high >> 8, first), room = zeros != 0 ? 6 : 7;
  if (last - first > room || low < kWeightExponentMin << 7 || high >= kTwelveExponentEnd << 7) return false;
  const auto from = static_cast<uint8_t>(zeros != 0 ? first - 1 : first);
  *base = static_cast<uint8_t>(from | (zeros != 0 ? kHasZeros : 0));
  HWY_ALIGN uint8_t lows[kSpill], codes[kSpill];
  for (int i = 0; i < kSpill; i++) {
    const uint16_t w = words[i];
    const bool zero = (w & 0x7fff) == 0;
    const auto code = static_cast<uint8_t>(((w >> 12) & 8) | (((w >> 8) & 127) - from));
    lows[i] = zero ? uint8_t{0} : static_cast<uint8_t>(w);
    codes[i] = zero ? uint8_t{0} : code;
  }
  for (int k = 0; k < kGroup; k += 4) {
    uint8_t* step = group + k / 16 * kTwelveStep;
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < 4; i++) {
        std::memcpy(step + twelve_low(k % 16 + i, 8 * half), lows + (k + i) * kPanel + 8 * half, 8);
      }
      for (int i = 0; i < 2; i++) {
        uint64_t a, b;
        std::memcpy(&a, codes + (k + i) * kPanel + 8 * half, 8);
        std::memcpy(&b, codes + (k + i + 2) * kPanel + 8 * half, 8);
        a |= b << 4;
        std::memcpy(step + twelve_code(k % 16 + i, 8 * half), &a, 8);
      }
    }
  }
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif
