// dot16 against a panel: sixteen rows of operands, a lane per key or per column of V, prepared once and used by every
// query of a tile. Include after simd-inl.h inside a file compiled by foreach_target.
#if defined(ISOBIT_OPS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOBIT_OPS_CPU_ATTENTION_INL_H_
#undef ISOBIT_OPS_CPU_ATTENTION_INL_H_
#else
#define ISOBIT_OPS_CPU_ATTENTION_INL_H_
#endif

#include "numerics/dot.h"
#include "ops/cpu/simd-inl.h"

#if HWY_TARGET != HWY_SCALAR

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

using numerics::Operand;

// Exponents are handled as the biased exponents of f32. The fast form of a step covers operands below 2^41 (so that no
// product overflows and what is too small for its exponent byte is far below the quantum) and largest exponents of
// 2^-60 to 2^80 (so that scales are normal numbers); the scalar rule does the rest.
constexpr int kLargestOperand = 127 + 40;
constexpr int kLowestExponent = 127 - 60, kHighestExponent = 127 + 80;

// Sixteen values that all lanes share.
struct Shared16 {
  alignas(64) float value[16];
  alignas(64) uint32_t below[16];  // four times a byte: the exponent's distance from the largest; 255 for a zero
  int32_t top;                     // the largest exponent
  bool zero, odd;                  // all are zero; one is too large, infinite or NaN
};

// Steps take four vectors of lanes at once: byte v of a 32-bit lane holds the exponent of that lane of vector v. A
// wider panel is several, one after the other: [lanes / kPanelLanes][rows][kPanelLanes].
constexpr size_t kPanelLanes = 4 * hn::MaxLanes(F32());

// The exponent that the rule gives a value: a subnormal f16 has that of the smallest normal one.
template <Operand kind, class D, class VI = hn::Vec<I32Of<D>>>
HWY_INLINE VI OperandExponent(D, VI magnitude) {
  const I32Of<D> di;
  const auto e = hn::ShiftRight<23>(magnitude);
  if constexpr (kind == Operand::kBF16) {
    return e;
  } else {
    return hn::IfThenElse(hn::Eq(magnitude, hn::Zero(di)), e, hn::Max(e, hn::Set(di, 127 - 14)));
  }
}

// The operand's bits, in the upper half of each lane, as f32.
template <Operand kind, class D, class VU = hn::Vec<U32Of<D>>>
HWY_INLINE hn::Vec<D> OperandToF32(D d, VU upper) {
  const U32Of<D> du;
  if constexpr (kind == Operand::kBF16) {
    return hn::BitCast(d, upper);
  } else {
    const auto magnitude = hn::And(upper, hn::Set(du, 0x7fff0000));
    const auto sign = hn::And(upper, hn::Set(du, 0x80000000));
    const auto aligned = hn::ShiftRight<3>(magnitude);
    const auto finite = hn::BitCast(du, hn::Mul(hn::BitCast(d, aligned), hn::Set(d, 0x1p112f)));
    const auto special = hn::Or(aligned, hn::Set(du, numerics::kInf32));
    const auto infinite = hn::Gt(hn::BitCast(I32Of<D>(), magnitude), hn::Set(I32Of<D>(), 0x7bff0000));
    return hn::BitCast(d, hn::Or(sign, hn::IfThenElse(hn::RebindMask(du, infinite), special, finite)));
  }
}

template <Operand kind>
HWY_INLINE uint16_t OperandBits(float x) {
  return kind == Operand::kBF16 ? static_cast<uint16_t>(numerics::bits(x) >> 16) : numerics::f32_to_f16(x);
}

// Not inlined: the steps should broadcast from memory, which is a load, rather than from registers.
template <Operand kind, class D>
HWY_NOINLINE void SetShared(D d, const float* values, Shared16& a) {
  const I32Of<D> di;
  const size_t n = hn::Lanes(d);
  const auto magnitude_mask = hn::Set(di, 0x7fffffff);
  auto largest = hn::Zero(di);
  for (size_t i = 0; i < 16; i += n) {
    const auto v = hn::LoadU(d, values + i);
    hn::Store(v, d, a.value + i);
    largest = hn::Max(largest, hn::And(hn::BitCast(di, v), magnitude_mask));
  }
  const int32_t top_magnitude = hn::GetLane(hn::MaxOfLanes(di, largest));
  a.zero = top_magnitude == 0;
  a.top = hn::GetLane(OperandExponent<kind>(d, hn::Set(di, top_magnitude)));
  a.odd = a.top > kLargestOperand;
  for (size_t i = 0; i < 16; i += n) {
    const auto e = OperandExponent<kind>(d, hn::And(hn::BitCast(di, hn::Load(d, a.value + i)), magnitude_mask));
    const auto below = hn::IfThenElse(hn::Gt(e, hn::Zero(di)), hn::Sub(hn::Set(di, a.top), e), hn::Set(di, 255));
    const auto two = hn::Or(below, hn::ShiftLeft<8>(below));
    hn::Store(hn::BitCast(hn::RebindToUnsigned<decltype(di)>(), hn::Or(two, hn::ShiftLeft<16>(two))),
              hn::RebindToUnsigned<decltype(di)>(), a.below + i);
  }
}

// Lanes whose bit is set in `redo`, by the scalar rule. Row i counts where bit i of `rows` is set; others are zero.
template <Operand kind>
HWY_NOINLINE void StepScalar(float* c, uint64_t redo, const Shared16& a, const float* b, uint32_t rows) {
  uint16_t x[16], y[16];
  for (int i = 0; i < 16; i++) x[i] = OperandBits<kind>(a.value[i]);
  for (int lane = 0; redo != 0; lane++, redo >>= 1) {
    if ((redo & 1) == 0) continue;
    bool zero = c[lane] == 0.0f;
    for (size_t i = 0; i < 16; i++) {
      y[i] = ((rows >> i) & 1) != 0 ? OperandBits<kind>(b[i * kPanelLanes + lane]) : uint16_t{0};
      zero &= (y[i] & 0x7fff) == 0;
    }
    c[lane] = zero && !a.odd ? 0.0f : numerics::dot16<kind>(c[lane], x, y);
  }
}

// One vector of StepPanel: the result, and in `bad` a sign bit for each lane that it does not cover.
template <class D, class V = hn::Vec<D>, class VI = hn::Vec<I32Of<D>>>
HWY_INLINE V StepVector(D d, V old, VI products, const Shared16& a, const float* HWY_RESTRICT b, VI& bad) {
  const I32Of<D> di;
  const U32Of<D> du;
  const auto old_exponent = hn::BitCast(di, hn::ShiftRight<24>(hn::ShiftLeft<1>(hn::BitCast(du, old))));
  const auto exponent = hn::Max(products, old_exponent);
  const auto shifted = hn::ShiftLeft<23>(exponent);
  const auto up = hn::BitCast(d, hn::Sub(hn::Set(di, static_cast<int32_t>(279u << 23)), shifted));  // 2^(25 - emax)
  const auto down = hn::BitCast(d, hn::Sub(shifted, hn::Set(di, 25 << 23)));                        // 2^(emax - 25)
  auto s0 = Truncate(d, hn::Mul(old, up)), s1 = hn::Zero(di);
  for (size_t i = 0; i < 16; i += 2) {
    const auto p0 = hn::Mul(hn::Mul(hn::Load(d, b + i * kPanelLanes), up), hn::Set(d, a.value[i]));
    const auto p1 = hn::Mul(hn::Mul(hn::Load(d, b + (i + 1) * kPanelLanes), up), hn::Set(d, a.value[i + 1]));
    s0 = hn::Add(s0, Truncate(d, p0));
    s1 = hn::Add(s1, Truncate(d, p1));
  }
  // Each half stays under 2^31 quanta; both together may not.
  const auto sum = hn::Add(s0, s1);
  const auto overflow = hn::And(hn::Xor(s0, sum), hn::Xor(s1, sum));
  const auto outside =
      hn::Or(hn::Sub(exponent, hn::Set(di, kLowestExponent)), hn::Sub(hn::Set(di, kHighestExponent), exponent));
  bad = hn::Or(overflow, outside);
  return hn::Mul(TowardZero(d, sum), down);
}

// N3 on kPanelLanes lanes: c[lane] + Σ_i a.value[i]·b[i·kPanelLanes + lane]; e: the exponents of b. All operands of b
// are below 2^41, and a is not odd.
template <Operand kind, class D>
HWY_INLINE void StepPanel(D d, float* HWY_RESTRICT c, const Shared16& a, const float* HWY_RESTRICT b,
                          const uint8_t* HWY_RESTRICT e) {
  const I32Of<D> di;
  const U32Of<D> du;
  const hn::Repartition<uint8_t, D> d8;
  constexpr size_t kLanes = kPanelLanes / 4;
  auto m0 = hn::Zero(d8), m1 = hn::Zero(d8);
  for (size_t i = 0; i < 16; i += 2) {
    m0 = hn::Max(m0, hn::SaturatedSub(hn::Load(d8, e + i * kPanelLanes), hn::BitCast(d8, hn::Set(du, a.below[i]))));
    m1 = hn::Max(
        m1, hn::SaturatedSub(hn::Load(d8, e + (i + 1) * kPanelLanes), hn::BitCast(d8, hn::Set(du, a.below[i + 1]))));
  }
  const auto largest = hn::BitCast(du, hn::Max(m0, m1));
  const auto base = hn::Set(di, a.top - 127), byte = hn::Set(di, 255);
  const hn::Vec<I32Of<D>> exponents[4] = {
      hn::And(hn::BitCast(di, largest), byte), hn::And(hn::BitCast(di, hn::ShiftRight<8>(largest)), byte),
      hn::And(hn::BitCast(di, hn::ShiftRight<16>(largest)), byte), hn::BitCast(di, hn::ShiftRight<24>(largest))};
  for (size_t v = 0; v < kPanelLanes; v += kLanes) {
    const auto products = hn::Add(exponents[v / kLanes], base);
    const auto old = hn::Load(d, c + v);
    hn::Vec<I32Of<D>> bad;
    const auto result = StepVector(d, old, products, a, b + v, bad);
    const auto redo = hn::Lt(bad, hn::Zero(di));
    hn::Store(result, d, c + v);
    if (HWY_LIKELY(hn::AllFalse(di, redo))) continue;
    HWY_ALIGN uint8_t mask[8] = {};
    hn::StoreMaskBits(di, redo, mask);
    hn::Store(hn::IfThenElse(hn::RebindMask(d, redo), old, result), d, c + v);
    StepScalar<kind>(c + v, static_cast<uint64_t>(mask[0]) | static_cast<uint64_t>(kLanes > 8 ? mask[1] : 0) << 8, a,
                     b + v, 0xffff);
  }
}

// Four rows of 128-bit blocks: block j of the result is from rows[4·j], so that a transpose of blocks gives lanes in
// the rows' order.
template <class D16>
HWY_INLINE hn::Vec<D16> LoadBlocks(D16 d16, const uint16_t* const* rows, size_t offset) {
  if constexpr (hn::MaxLanes(d16) <= 8) {
    return hn::LoadU(d16, rows[0] + offset);
  } else {
    const hn::Half<D16> half;
    return hn::Combine(d16, LoadBlocks(half, rows + hn::MaxLanes(d16) / 4, offset), LoadBlocks(half, rows, offset));
  }
}

// The exponents of a panel's values. Returns whether the panel is odd: has a value too large, infinite or NaN.
template <Operand kind, class D>
HWY_INLINE bool PanelExponents(D d, const float* HWY_RESTRICT b, size_t rows, uint8_t* HWY_RESTRICT e) {
  const U32Of<D> du;
  const hn::Repartition<uint8_t, D> d8;
  constexpr size_t kLanes = kPanelLanes / 4;
  auto largest = hn::Zero(d8);
  for (size_t i = 0; i < rows; i++, b += kPanelLanes, e += kPanelLanes) {
    const auto x0 = hn::BitCast(du, hn::Load(d, b)), x1 = hn::BitCast(du, hn::Load(d, b + kLanes));
    const auto x2 = hn::BitCast(du, hn::Load(d, b + 2 * kLanes)), x3 = hn::BitCast(du, hn::Load(d, b + 3 * kLanes));
    const auto low = hn::Or(hn::And(hn::ShiftRight<23>(x0), hn::Set(du, 0xff)),
                            hn::And(hn::ShiftRight<15>(x1), hn::Set(du, 0xff00)));
    const auto high = hn::Or(hn::And(hn::ShiftRight<7>(x2), hn::Set(du, 0xff0000)),
                             hn::And(hn::ShiftLeft<1>(x3), hn::Set(du, 0xff000000)));
    auto exponents = hn::BitCast(d8, hn::Or(low, high));
    if constexpr (kind == Operand::kF16) {
      const auto zero = hn::Eq(exponents, hn::Zero(d8));
      exponents = hn::IfThenElse(zero, exponents, hn::Max(exponents, hn::Set(d8, 127 - 14)));
    }
    hn::Store(exponents, d8, e);
    largest = hn::Max(largest, exponents);
  }
  return !hn::AllTrue(d8, hn::Eq(hn::SaturatedSub(largest, hn::Set(d8, kLargestOperand)), hn::Zero(d8)));
}

// The panel of `count` keys, a multiple of kPanelLanes: row i holds element i of every key. Returns whether it is odd.
template <Operand kind, class D>
HWY_NOINLINE bool KeyPanel(D d, const uint16_t* const* keys, size_t count, size_t dim, float* b, uint8_t* e) {
  const U32Of<D> du;
  const hn::Repartition<uint16_t, D> d16;
  const auto upper_mask = hn::Set(du, 0xffff0000);
  for (size_t k = 0; k < count; k += hn::Lanes(d)) {
    float* to = b + k / kPanelLanes * kPanelLanes * dim + k % kPanelLanes;
    for (size_t i = 0; i < dim; i += 8) {
      const auto v0 = hn::BitCast(du, LoadBlocks(d16, keys + k, i));
      const auto v1 = hn::BitCast(du, LoadBlocks(d16, keys + k + 1, i));
      const auto v2 = hn::BitCast(du, LoadBlocks(d16, keys + k + 2, i));
      const auto v3 = hn::BitCast(du, LoadBlocks(d16, keys + k + 3, i));
      const auto t0 = hn::InterleaveLower(du, v0, v2), t1 = hn::InterleaveLower(du, v1, v3);
      const auto t2 = hn::InterleaveUpper(du, v0, v2), t3 = hn::InterleaveUpper(du, v1, v3);
      const hn::Vec<U32Of<D>> pairs[4] = {hn::InterleaveLower(du, t0, t1), hn::InterleaveUpper(du, t0, t1),
                                          hn::InterleaveLower(du, t2, t3), hn::InterleaveUpper(du, t2, t3)};
      for (size_t j = 0; j < 4; j++, to += 2 * kPanelLanes) {
        hn::Store(OperandToF32<kind>(d, hn::ShiftLeft<16>(pairs[j])), d, to);
        hn::Store(OperandToF32<kind>(d, hn::And(pairs[j], upper_mask)), d, to + kPanelLanes);
      }
    }
  }
  return PanelExponents<kind>(d, b, dim * (count / kPanelLanes), e);
}

// The panel of sixteen values, `columns` wide: row i holds values[i], zeros where that is null. Columns from dim on are
// left alone.
template <Operand kind, class D>
HWY_NOINLINE bool ValuePanel(D d, const uint16_t* const* values, size_t dim, size_t columns, float* b, uint8_t* e) {
  const U32Of<D> du;
  const hn::Rebind<uint16_t, D> d16;
  for (size_t i = 0; i < 16; i++) {
    for (size_t j = 0; j < dim; j += hn::Lanes(d)) {
      const auto x =
          values[i] != nullptr ? hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, values[i] + j))) : hn::Zero(du);
      hn::Store(OperandToF32<kind>(d, x), d,
                b + j / kPanelLanes * kPanelLanes * 16 + i * kPanelLanes + j % kPanelLanes);
    }
  }
  return PanelExponents<kind>(d, b, 16 * (columns / kPanelLanes), e);
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif
