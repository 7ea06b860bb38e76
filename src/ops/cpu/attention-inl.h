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

// Steps take this many lanes at once: the exponents of four vectors are one vector of bytes.
template <class D>
HWY_INLINE constexpr size_t PanelLanes(D d) {
  return 4 * hn::MaxLanes(d);
}

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

template <Operand kind, class D>
HWY_INLINE void SetShared(D d, const float* values, Shared16& a) {
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

// x is far inside the range of int32: the conversion's saturation, which costs as much as itself, is left out.
template <class D>
HWY_INLINE hn::Vec<I32Of<D>> Truncate(D, hn::Vec<D> x) {
#if HWY_TARGET == HWY_AVX2
  return hn::Vec<I32Of<D>>{_mm256_cvttps_epi32(x.raw)};
#elif HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return hn::Vec<I32Of<D>>{_mm512_cvttps_epi32(x.raw)};
#elif HWY_TARGET == HWY_SSE4
  return hn::Vec<I32Of<D>>{_mm_cvttps_epi32(x.raw)};
#else
  return hn::ConvertTo(I32Of<D>(), x);
#endif
}

// Lanes whose bit is set in `redo`, by the scalar rule. Row i counts where bit i of `rows` is set; others are zero.
template <Operand kind>
HWY_NOINLINE void StepScalar(float* c, uint64_t redo, const Shared16& a, const float* b, size_t stride, uint32_t rows) {
  uint16_t x[16], y[16];
  for (int i = 0; i < 16; i++) x[i] = OperandBits<kind>(a.value[i]);
  for (int lane = 0; redo != 0; lane++, redo >>= 1) {
    if ((redo & 1) == 0) continue;
    for (size_t i = 0; i < 16; i++)
      y[i] = ((rows >> i) & 1) != 0 ? OperandBits<kind>(b[i * stride + lane]) : uint16_t{0};
    c[lane] = numerics::dot16<kind>(c[lane], x, y);
  }
}

// N3 on PanelLanes(d) lanes: c[lane] + Σ_i a.value[i]·b[i·stride + lane]; e: the exponents of b. All operands of b are
// below 2^41, and a is not odd.
template <Operand kind, class D>
HWY_INLINE void StepPanel(D d, float* HWY_RESTRICT c, const Shared16& a, const float* HWY_RESTRICT b,
                          const uint8_t* HWY_RESTRICT e, size_t stride) {
  const I32Of<D> di;
  const U32Of<D> du;
  const hn::Repartition<uint8_t, D> d8;
  const hn::Rebind<uint8_t, D> d8_quarter;
  const size_t n = hn::Lanes(d);
  auto m0 = hn::Zero(d8), m1 = hn::Zero(d8);
  for (size_t i = 0; i < 16; i += 2) {
    m0 = hn::Max(m0, hn::SaturatedSub(hn::Load(d8, e + i * stride), hn::BitCast(d8, hn::Set(du, a.below[i]))));
    m1 =
        hn::Max(m1, hn::SaturatedSub(hn::Load(d8, e + (i + 1) * stride), hn::BitCast(d8, hn::Set(du, a.below[i + 1]))));
  }
  HWY_ALIGN uint8_t largest[64];
  hn::Store(hn::Max(m0, m1), d8, largest);
  const auto base = hn::Set(di, a.top - 127);
  for (size_t v = 0; v < 4; v++) {
    const auto old = hn::Load(d, c + v * n);
    const auto old_exponent = hn::BitCast(di, hn::ShiftRight<24>(hn::ShiftLeft<1>(hn::BitCast(du, old))));
    const auto products = hn::Add(hn::PromoteTo(di, hn::Load(d8_quarter, largest + v * n)), base);
    const auto exponent = hn::Max(products, old_exponent);
    const auto shifted = hn::ShiftLeft<23>(exponent);
    const auto up = hn::BitCast(d, hn::Sub(hn::Set(di, static_cast<int32_t>(279u << 23)), shifted));  // 2^(25 - emax)
    const auto down = hn::BitCast(d, hn::Sub(shifted, hn::Set(di, 25 << 23)));                        // 2^(emax - 25)
    const float* HWY_RESTRICT row = b + v * n;
    auto s0 = Truncate(d, hn::Mul(old, up)), s1 = hn::Zero(di);
    for (size_t i = 0; i < 16; i += 2) {
      const auto p0 = hn::Mul(hn::Mul(hn::Load(d, row + i * stride), up), hn::Set(d, a.value[i]));
      const auto p1 = hn::Mul(hn::Mul(hn::Load(d, row + (i + 1) * stride), up), hn::Set(d, a.value[i + 1]));
      s0 = hn::Add(s0, Truncate(d, p0));
      s1 = hn::Add(s1, Truncate(d, p1));
    }
    // Each half stays under 2^31 quanta; both together may not.
    const auto sum = hn::Add(s0, s1);
    const auto overflow = hn::Lt(hn::And(hn::Xor(s0, sum), hn::Xor(s1, sum)), hn::Zero(di));
    const auto outside =
        hn::Or(hn::Lt(exponent, hn::Set(di, kLowestExponent)), hn::Gt(exponent, hn::Set(di, kHighestExponent)));
    const auto bad = hn::Or(overflow, outside);
    const auto result = hn::Mul(TowardZero(d, sum), down);
    if (HWY_LIKELY(hn::AllFalse(di, bad))) {
      hn::Store(result, d, c + v * n);
      continue;
    }
    HWY_ALIGN uint8_t mask[8] = {};
    hn::StoreMaskBits(di, bad, mask);
    const auto redo = static_cast<uint64_t>(mask[0]) | static_cast<uint64_t>(n > 8 ? mask[1] : 0) << 8;
    HWY_ALIGN float before[16];
    hn::Store(old, d, before);
    hn::Store(result, d, c + v * n);
    for (size_t lane = 0; lane < n; lane++) {
      if (((redo >> lane) & 1) != 0) c[v * n + lane] = before[lane];
    }
    StepScalar<kind>(c + v * n, redo, a, row, stride, 0xffff);
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

// One vector of a panel's row: values, exponents, and the largest magnitude so far.
template <Operand kind, class D>
HWY_INLINE hn::Vec<I32Of<D>> StorePanel(D d, hn::Vec<U32Of<D>> upper, float* b, uint8_t* e, hn::Vec<I32Of<D>> largest) {
  const I32Of<D> di;
  const auto x = OperandToF32<kind>(d, upper);
  hn::Store(x, d, b);
  const auto magnitude = hn::And(hn::BitCast(di, x), hn::Set(di, 0x7fffffff));
  hn::Store(hn::DemoteTo(hn::Rebind<uint8_t, D>(), OperandExponent<kind>(d, magnitude)), hn::Rebind<uint8_t, D>(), e);
  return hn::Max(largest, magnitude);
}

template <class D>
HWY_INLINE bool IsOdd(D, hn::Vec<I32Of<D>> largest) {
  const I32Of<D> di;
  return !hn::AllFalse(di, hn::Gt(hn::ShiftRight<23>(largest), hn::Set(di, kLargestOperand)));
}

// The panel of `count` keys (a multiple of the lanes): row i holds element i of every key. Returns whether it is odd.
template <Operand kind, class D>
HWY_NOINLINE bool KeyPanel(D d, const uint16_t* const* keys, size_t count, size_t dim, float* b, uint8_t* e) {
  const U32Of<D> du;
  const hn::Repartition<uint16_t, D> d16;
  const auto upper_mask = hn::Set(du, 0xffff0000);
  auto largest = hn::Zero(I32Of<D>());
  for (size_t k = 0; k < count; k += hn::Lanes(d)) {
    for (size_t i = 0; i < dim; i += 8) {
      const auto v0 = hn::BitCast(du, LoadBlocks(d16, keys + k, i));
      const auto v1 = hn::BitCast(du, LoadBlocks(d16, keys + k + 1, i));
      const auto v2 = hn::BitCast(du, LoadBlocks(d16, keys + k + 2, i));
      const auto v3 = hn::BitCast(du, LoadBlocks(d16, keys + k + 3, i));
      const auto t0 = hn::InterleaveLower(du, v0, v2), t1 = hn::InterleaveLower(du, v1, v3);
      const auto t2 = hn::InterleaveUpper(du, v0, v2), t3 = hn::InterleaveUpper(du, v1, v3);
      const hn::Vec<U32Of<D>> pairs[4] = {hn::InterleaveLower(du, t0, t1), hn::InterleaveUpper(du, t0, t1),
                                          hn::InterleaveLower(du, t2, t3), hn::InterleaveUpper(du, t2, t3)};
      for (size_t j = 0; j < 4; j++) {
        const size_t at = (i + 2 * j) * count + k;
        largest = StorePanel<kind>(d, hn::ShiftLeft<16>(pairs[j]), b + at, e + at, largest);
        largest = StorePanel<kind>(d, hn::And(pairs[j], upper_mask), b + at + count, e + at + count, largest);
      }
    }
  }
  return IsOdd(d, largest);
}

// The panel of sixteen values: row i holds values[i], zeros where that is null. Columns from dim on are left alone.
template <Operand kind, class D>
HWY_NOINLINE bool ValuePanel(D d, const uint16_t* const* values, size_t dim, size_t stride, float* b, uint8_t* e) {
  const U32Of<D> du;
  const hn::Rebind<uint16_t, D> d16;
  auto largest = hn::Zero(I32Of<D>());
  for (size_t i = 0; i < 16; i++, b += stride, e += stride) {
    for (size_t j = 0; j < dim; j += hn::Lanes(d)) {
      const auto x =
          values[i] != nullptr ? hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, values[i] + j))) : hn::Zero(du);
      largest = StorePanel<kind>(d, x, b + j, e + j, largest);
    }
  }
  return IsOdd(d, largest);
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif  // HWY_TARGET != HWY_SCALAR
#endif
