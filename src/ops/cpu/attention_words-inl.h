// dot16 against bf16 as it lies in memory: the step of twelve-inl.h, in words of 16 bits where that saves half. Include
// after hwy/highway.h inside a file compiled by foreach_target.
//
// Its conditions (all but the first two are looked after here, lane by lane, and a lane that misses one is void):
//  - the sixteen values that all lanes share are under 2^16, and their mantissas are not nearly all full, so that the
//    sum stays under 2^31 quanta (kFullMantissas): Words16::plain;
//  - no operand of the lanes is 2^41 or more, infinite or NaN: an exponent below that leaves w·2^(25-E) finite;
//  - E, the largest exponent of products and sum, is from -48 to 24: then 25 - E can be added to a word's exponent
//    without leaving it, a zero or subnormal word (whose exponent is 0) still makes a product under 2^-37 of a quantum,
//    and so does one whose shared value is too small for its byte in `below`.
#if defined(ISOBIT_OPS_CPU_ATTENTION_WORDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOBIT_OPS_CPU_ATTENTION_WORDS_INL_H_
#undef ISOBIT_OPS_CPU_ATTENTION_WORDS_INL_H_
#else
#define ISOBIT_OPS_CPU_ATTENTION_WORDS_INL_H_
#endif

#include <bitset>

#include "ops/cpu/ahead.h"
#include "ops/cpu/attention-inl.h"
#include "ops/cpu/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {
namespace words {

// Sixteen words a vector, eight where vectors are short.
using DF = hn::CappedTag<float, 8>;
using DU = hn::RebindToUnsigned<DF>;
using DI = hn::RebindToSigned<DF>;
using DW = hn::Repartition<uint16_t, DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
using VI = hn::Vec<DI>;
using VW = hn::Vec<DW>;
constexpr size_t kLanes = hn::MaxLanes(DF());

constexpr int kSharedTop = 127 + 15, kLift = kSharedTop - 127;  // biased exponents, as those below
constexpr int kFloor = 127 - 48, kEnd = 127 + 25;               // of E
constexpr int kLaneEnd = 127 + 41;
constexpr int kMostRows = 3;  // that share a lane's words in registers

// Sixteen values that all lanes share.
struct Words16 {
  alignas(64) float value[16];
  alignas(64) uint32_t below[16];  // in the high byte of both halves: how far the exponent lies under kSharedTop
  uint32_t below_pairs[8];         // the same of two values: one in each half
  bool zero, plain;
};

// Not inlined: the steps should broadcast from memory, which is a load, rather than from registers.
inline HWY_NOINLINE void SetWords(const float* values, Words16& a) {
  const DF df;
  const DI di;
  auto largest = hn::Zero(di), mantissas = hn::Zero(di);
  for (size_t i = 0; i < 16; i += kLanes) {
    const VF v = hn::LoadU(df, values + i);
    const VI magnitude = hn::And(hn::BitCast(di, v), hn::Set(di, 0x7fffffff)), e = hn::ShiftRight<23>(magnitude);
    const VI under = hn::IfThenElse(hn::Eq(e, hn::Zero(di)), hn::Set(di, 255), hn::Sub(hn::Set(di, kSharedTop), e));
    const VI byte = hn::ShiftLeft<8>(under);
    hn::Store(v, df, a.value + i);
    hn::Store(hn::BitCast(DU(), hn::Or(byte, hn::ShiftLeft<16>(byte))), DU(), a.below + i);
    largest = hn::Max(largest, magnitude);
    mantissas = hn::Add(mantissas, hn::Or(hn::And(hn::ShiftRight<16>(magnitude), hn::Set(di, 127)), hn::Set(di, 128)));
  }
  const int32_t top = hn::GetLane(hn::MaxOfLanes(di, largest));
  a.zero = top == 0;
  a.plain = top >> 23 <= kSharedTop && hn::GetLane(hn::SumOfLanes(di, mantissas)) < kFullMantissas;
}

inline void SetPairs(Words16& a) {
  for (int i = 0; i < 8; i++) a.below_pairs[i] = (a.below[2 * i] & 0xffff) | (a.below[2 * i + 1] & 0xffff0000);
}

// The scale of a step. largest: of the products, above other bits; c: c's upper halves, a word for each of `largest`.
struct Scale {
  VW shift;  // 25 - E in the place of an exponent

  HWY_INLINE Scale() {}  // not the implicit one, which would be compiled for the baseline
  HWY_INLINE Scale(VW largest, VW c, VW& least, VW& most) {
    const DW dw;
    const VW raw = hn::Max(hn::Add(largest, hn::Set(dw, kLift << 8)), hn::Add(c, c));
    least = hn::Min(least, raw);
    most = hn::Max(most, raw);
    shift = hn::Sub(hn::Set(dw, kEnd << 7), hn::And(hn::ShiftRight<1>(raw), hn::Set(dw, 0x7f80)));
  }
  HWY_INLINE VW Up() const { return hn::Add(shift, hn::Set(DW(), 127 << 7)); }    // 2^(25 - E)
  HWY_INLINE VW Down() const { return hn::Sub(hn::Set(DW(), 127 << 7), shift); }  // 2^(E - 25)
};

HWY_INLINE VF Low(VW w) { return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::BitCast(DU(), w))); }
HWY_INLINE VF High(VW w) { return hn::BitCast(DF(), hn::And(hn::BitCast(DU(), w), hn::Set(DU(), 0xffff0000))); }

HWY_INLINE bool Covered(VW least, VW most, VW magnitudes) {
  const DW dw;
  const auto low = hn::Eq(hn::Max(least, hn::Set(dw, kFloor << 8)), least);
  const auto high = hn::Eq(hn::Min(most, hn::Set(dw, (kEnd << 8) - 1)), most);
  const auto lane = hn::Eq(hn::Min(magnitudes, hn::Set(dw, (kLaneEnd << 8) - 1)), magnitudes);
  return hn::AllTrue(dw, hn::And(hn::And(low, high), lane));
}

// Columns [j, j + 2·kLanes) of Σ_i p[r][i]·v[i][column] onto o[r], which holds them as even columns, then odd ones.
// False: void, nothing is changed. In TowardZeroMode, as what follows.
template <int kRows>
HWY_INLINE bool ColumnsStep(const uint16_t* const* v, size_t j, const Words16* const* p, float* const* o) {
  const DF df;
  const DU du;
  const DW dw;
  VW largest[kRows], magnitudes = hn::Zero(dw), least = hn::Set(dw, 0xffff), most = hn::Zero(dw);
  VF c0[kRows], c1[kRows];
  VI s0[kRows], s1[kRows];
  Scale scale[kRows];
  for (int r = 0; r < kRows; r++) largest[r] = hn::Zero(dw);
  for (size_t i = 0; i < 16; i++) {
    const VW w = hn::LoadU(dw, v[i] + j), m = hn::Add(w, w);
    magnitudes = hn::Max(magnitudes, m);
    for (int r = 0; r < kRows; r++) {
      largest[r] = hn::Max(largest[r], hn::SaturatedSub(m, hn::BitCast(dw, hn::Set(du, p[r]->below[i]))));
    }
  }
  for (int r = 0; r < kRows; r++) {
    c0[r] = hn::Load(df, o[r] + j), c1[r] = hn::Load(df, o[r] + j + kLanes);
    const VW c = hn::OddEven(hn::BitCast(dw, c1[r]), hn::BitCast(dw, hn::ShiftRight<16>(hn::BitCast(du, c0[r]))));
    scale[r] = Scale(largest[r], c, least, most);
    s0[r] = Truncate(df, hn::Mul(c0[r], Low(scale[r].Up())));
    s1[r] = Truncate(df, hn::Mul(c1[r], High(scale[r].Up())));
  }
  for (size_t i = 0; i < 16; i++) {
    const VW w = hn::LoadU(dw, v[i] + j);
    for (int r = 0; r < kRows; r++) {
      const VF x = hn::Set(df, p[r]->value[i]);
      const VW scaled = hn::Add(w, scale[r].shift);
      s0[r] = Settle(hn::Add(s0[r], Truncate(df, hn::Mul(Low(scaled), x))));
      s1[r] = Settle(hn::Add(s1[r], Truncate(df, hn::Mul(High(scaled), x))));
    }
  }
  if (HWY_UNLIKELY(!Covered(least, most, magnitudes))) return false;
  for (int r = 0; r < kRows; r++) {
    hn::Store(hn::Mul(CutToFloat(df, s0[r]), Low(scale[r].Down())), df, o[r] + j);
    hn::Store(hn::Mul(CutToFloat(df, s1[r]), High(scale[r].Down())), df, o[r] + j + kLanes);
  }
  return true;
}

using Blocks = std::bitset<128>;  // of 2·kLanes columns

// Sixteen keys, from `start` on, for up to kMostRows rows: what p[r] and v add to o[r].
struct ColumnsJob {
  const uint16_t* const* v = nullptr;
  int64_t start = 0;
  size_t rows = 0;
  const Words16* p[kMostRows] = {};
  float* o[kMostRows] = {};
};

// All columns of one job after the other. Returns how many were begun: all, or those up to the first that leaves blocks
// undone.
inline HWY_NOINLINE size_t Columns(const ColumnsJob* jobs, size_t count, size_t dim, Ahead& ahead, Blocks& undone) {
  for (size_t n = 0; n < count; n++) {
    const ColumnsJob& job = jobs[n];
    for (size_t j = 0; j < dim; j += 2 * kLanes) {
      ahead.go();
      const bool done = job.rows == 1   ? ColumnsStep<1>(job.v, j, job.p, job.o)
                        : job.rows == 2 ? ColumnsStep<2>(job.v, j, job.p, job.o)
                                        : ColumnsStep<3>(job.v, j, job.p, job.o);
      undone[j / (2 * kLanes)] = !done;
    }
    if (HWY_UNLIKELY(undone.any())) return n + 1;
  }
  return count;
}

// Where column j of a row of sums is; and the columns put in order.
constexpr size_t column_at(size_t j) { return j / (2 * kLanes) * 2 * kLanes + j % 2 * kLanes + j % (2 * kLanes) / 2; }
HWY_INLINE void Order(size_t dim, float* o) {
  const DF df;
  for (size_t j = 0; j < dim; j += 2 * kLanes) {
    hn::StoreInterleaved2(hn::Load(df, o + j), hn::Load(df, o + j + kLanes), df, o + j);
  }
}

// kLanes keys of pairs[element / 2][key], stride apart: their dot products with q[r][0..dim / 16).
template <int kRows>
HWY_INLINE bool KeysStep(const uint32_t* pairs, size_t stride, size_t dim, const Words16* const* q,
                         float* const* score) {
  const DF df;
  const DU du;
  const DW dw;
  VW least = hn::Set(dw, 0xffff), most = hn::Zero(dw), magnitudes = hn::Zero(dw);
  VF c[kRows];
  for (int r = 0; r < kRows; r++) c[r] = hn::Zero(df);
  for (size_t step = 0; step < dim / 16; step++, pairs += 8 * stride) {
    VW largest[kRows];
    VI s0[kRows], s1[kRows];
    Scale scale[kRows];
    for (int r = 0; r < kRows; r++) largest[r] = hn::Zero(dw);
    for (size_t i = 0; i < 8; i++) {
      const VW w = hn::BitCast(dw, hn::Load(du, pairs + i * stride)), m = hn::Add(w, w);
      magnitudes = hn::Max(magnitudes, m);
      for (int r = 0; r < kRows; r++) {
        largest[r] = hn::Max(largest[r], hn::SaturatedSub(m, hn::BitCast(dw, hn::Set(du, q[r][step].below_pairs[i]))));
      }
    }
    for (int r = 0; r < kRows; r++) {
      const VU l = hn::BitCast(du, largest[r]), old = hn::BitCast(du, c[r]);
      const VU other = hn::Or(hn::ShiftLeft<16>(l), hn::ShiftRight<16>(l));  // the other half's
      const VU twice = hn::Or(hn::And(old, hn::Set(du, 0xffff0000)), hn::ShiftRight<16>(old));
      scale[r] = Scale(hn::Max(largest[r], hn::BitCast(dw, other)), hn::BitCast(dw, twice), least, most);
      s0[r] = Truncate(df, hn::Mul(c[r], High(scale[r].Up())));
      s1[r] = hn::Zero(DI());
    }
    for (size_t i = 0; i < 8; i++) {
      const VW w = hn::BitCast(dw, hn::Load(du, pairs + i * stride));
      for (int r = 0; r < kRows; r++) {
        const VW scaled = hn::Add(w, scale[r].shift);
        const VF x0 = hn::Set(df, q[r][step].value[2 * i]), x1 = hn::Set(df, q[r][step].value[2 * i + 1]);
        s0[r] = Settle(hn::Add(s0[r], Truncate(df, hn::Mul(Low(scaled), x0))));
        s1[r] = Settle(hn::Add(s1[r], Truncate(df, hn::Mul(High(scaled), x1))));
      }
    }
    for (int r = 0; r < kRows; r++) {
      c[r] = hn::Mul(CutToFloat(df, hn::Add(s0[r], s1[r])), High(scale[r].Down()));
    }
  }
  if (HWY_UNLIKELY(!Covered(least, most, magnitudes))) return false;
  for (int r = 0; r < kRows; r++) hn::Store(c[r], df, score[r]);
  return true;
}

// `count` keys for up to kMostRows rows. Returns a bit for each kLanes keys that are left undone.
inline HWY_NOINLINE uint64_t Keys(const uint32_t* pairs, size_t count, size_t dim, const Words16* const* q,
                                  float* const* score, size_t rows, Ahead& ahead) {
  uint64_t undone = 0;
  for (size_t k = 0; k < count; k += kLanes) {
    ahead.go();
    float* to[kMostRows];
    for (size_t r = 0; r < rows; r++) to[r] = score[r] + k;
    const bool done = rows == 1   ? KeysStep<1>(pairs + k, count, dim, q, to)
                      : rows == 2 ? KeysStep<2>(pairs + k, count, dim, q, to)
                                  : KeysStep<3>(pairs + k, count, dim, q, to);
    if (!done) undone |= uint64_t{1} << (k / kLanes);
  }
  return undone;
}

// pairs[element / 2][key] of `count` keys.
inline HWY_NOINLINE void KeyPairs(const uint16_t* const* keys, size_t count, size_t dim, uint32_t* pairs) {
  const DU du;
  const DW dw;
  for (size_t k = 0; k < count; k += kLanes) {
    for (size_t i = 0; i < dim; i += 8) {
      const auto v0 = hn::BitCast(du, LoadBlocks(dw, keys + k, i)),
                 v1 = hn::BitCast(du, LoadBlocks(dw, keys + k + 1, i));
      const auto v2 = hn::BitCast(du, LoadBlocks(dw, keys + k + 2, i)),
                 v3 = hn::BitCast(du, LoadBlocks(dw, keys + k + 3, i));
      const auto t0 = hn::InterleaveLower(du, v0, v2), t1 = hn::InterleaveLower(du, v1, v3);
      const auto t2 = hn::InterleaveUpper(du, v0, v2), t3 = hn::InterleaveUpper(du, v1, v3);
      uint32_t* to = pairs + i / 2 * count + k;
      hn::Store(hn::InterleaveLower(du, t0, t1), du, to);
      hn::Store(hn::InterleaveUpper(du, t0, t1), du, to + count);
      hn::Store(hn::InterleaveLower(du, t2, t3), du, to + 2 * count);
      hn::Store(hn::InterleaveUpper(du, t2, t3), du, to + 3 * count);
    }
  }
}

}  // namespace words
}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif
