// The contract's arithmetic on vectors, for any of Highway's targets: same bits as src/numerics, lane by lane.
// Include after hwy/highway.h inside a file compiled by foreach_target (per-target include guard below).
#if defined(ISOBIT_OPS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOBIT_OPS_CPU_SIMD_INL_H_
#undef ISOBIT_OPS_CPU_SIMD_INL_H_
#else
#define ISOBIT_OPS_CPU_SIMD_INL_H_
#endif

#include "hwy/highway.h"
#include "numerics/activation.h"
#include "numerics/dot.h"
#include "ops/cpu/simd_tables.h"
#include "ops/cpu/toward_zero.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes: the widest panel of columns that packed weights have.
using F32 = hn::CappedTag<float, 16>;
template <class D>
using I32Of = hn::RebindToSigned<D>;
template <class D>
using U32Of = hn::RebindToUnsigned<D>;

// N1. NaN becomes the one NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Canonical(D d, V x) {
  return hn::IfThenElse(hn::IsNaN(x), hn::BitCast(d, hn::Set(U32Of<D>(), numerics::kNaN32)), x);
}

// N2. f32 to the bits of bf16, in the low half of each 32-bit lane; NaN gives 0x7fff.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<U32Of<D>> RoundBF16(D, V x) {
  const U32Of<D> du;
  const auto u = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(odd, hn::Set(du, 0x7fff))));
  const auto magnitude = hn::BitCast(I32Of<D>(), hn::And(u, hn::Set(du, 0x7fffffff)));
  const auto nan = hn::Gt(magnitude, hn::Set(I32Of<D>(), static_cast<int32_t>(numerics::kInf32)));
  return hn::IfThenElse(hn::RebindMask(du, nan), hn::Set(du, numerics::kNaN16), rounded);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreBF16(D d, V x, uint16_t* to) {
  const hn::Rebind<uint16_t, D> d16;
  // The values fit 15 or 16 bits, so that the saturating conversion from signed changes nothing.
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(I32Of<D>(), RoundBF16(d, x))), d16, to);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadBF16(D d, const uint16_t* from) {
  const hn::Rebind<uint16_t, D> d16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(U32Of<D>(), hn::LoadU(d16, from))));
}

// The largest lane; NaN loses. Not hn::MaxOfLanes: the emulated one (clang's scalar target) starts at the lowest finite
// value and so misses that all are -infinity.
template <class D>
HWY_INLINE float LargestLane(D d, hn::Vec<D> v) {
  HWY_ALIGN float lane[hn::MaxLanes(D())];
  hn::Store(v, d, lane);
  float largest = lane[0];
  for (size_t i = 1; i < hn::Lanes(d); i++) largest = lane[i] > largest || largest != largest ? lane[i] : largest;
  return largest;
}

// a·b + c with one rounding, also on targets without an FMA instruction.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Fma(D d, V a, V b, V c) {
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  HWY_ALIGN float x[16], y[16], z[16];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (size_t i = 0; i < hn::Lanes(d); i++) x[i] = numerics::ffma(x[i], y[i], z[i]);
  return hn::Load(d, x);
#else
  (void)d;
  return hn::MulAdd(a, b, c);
#endif
}

// int32 to f32 toward zero, whatever the rounding mode's default. Clearing the bits of m >> 24 in the magnitude m
// clears the first bit below the 24 that are kept, and none of those 24; what is left below rounds down.
template <class D>
HWY_INLINE hn::Vec<D> TowardZero(D d, hn::Vec<I32Of<D>> s) {
  const I32Of<D> di;
  const U32Of<D> du;
  const auto sign = hn::And(s, hn::Set(di, static_cast<int32_t>(0x80000000)));
#if HWY_TARGET == HWY_SCALAR
  const auto negative = hn::ShiftRight<31>(s);  // -2^31 stays itself, as the other targets' Abs has it
  const auto m = hn::Sub(hn::BitCast(du, hn::Xor(s, negative)), hn::BitCast(du, negative));
#else
  const auto m = hn::BitCast(du, hn::Abs(s));
#endif
  const auto f = hn::ConvertTo(d, hn::BitCast(di, hn::AndNot(hn::ShiftRight<24>(m), m)));
  return hn::Or(f, hn::BitCast(d, sign));
}

// int32 to f32 toward zero, inside TowardZeroMode.
template <class D>
HWY_INLINE hn::Vec<D> CutToFloat(D d, hn::Vec<I32Of<D>> x) {
  if constexpr (TowardZeroMode::kWorks) return hn::ConvertTo(d, x);
  return TowardZero(d, x);
}

// f32 to int32 toward zero. x is far inside the range of int32: the conversion's saturation, which costs as much as
// itself, is left out.
template <class D>
HWY_INLINE hn::Vec<I32Of<D>> Truncate(D, hn::Vec<D> x) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Vec<I32Of<D>>(static_cast<int32_t>(x.raw));
#elif HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
#if HWY_TARGET == HWY_AVX3
  if constexpr (hn::MaxLanes(D()) == 16) return hn::Vec<I32Of<D>>{_mm512_cvttps_epi32(x.raw)};
#endif
#if HWY_TARGET != HWY_SSE4
  if constexpr (hn::MaxLanes(D()) == 8) return hn::Vec<I32Of<D>>{_mm256_cvttps_epi32(x.raw)};
#endif
  if constexpr (hn::MaxLanes(D()) <= 4) return hn::Vec<I32Of<D>>{_mm_cvttps_epi32(x.raw)};
#else
  return hn::ConvertTo(I32Of<D>(), x);
#endif
}

// Keeps a sum in its register and in this order: left alone, the compiler turns sixteen additions into a tree and
// spills its leaves.
template <class VX>
HWY_INLINE VX Settle(VX x) {
#if HWY_TARGET == HWY_AVX3
  asm("" : "+v"(x.raw));
#elif HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
  asm("" : "+x"(x.raw));
#elif HWY_TARGET == HWY_NEON
  asm("" : "+w"(x.raw));
#endif
  return x;
}

namespace detail {

// d² without the columns below 19 (numerics::detail::truncated_square), over 2^19.
template <class DU, class V = hn::Vec<DU>>
HWY_INLINE V TruncatedSquare(DU du, V x) {
  const hn::RebindToSigned<DU> di;
  auto sum = hn::Zero(du);
  const auto term = [&](auto a) HWY_ATTR {
    constexpr int kA = decltype(a)::value;
    constexpr uint32_t kMask = ((1u << kA) - 1) & ~((1u << (18 - kA)) - 1);
    const auto bit = hn::BitCast(du, hn::ShiftRight<31>(hn::BitCast(di, hn::ShiftLeft<31 - kA>(x))));
    const auto below = hn::ShiftRight<18 - kA>(hn::And(x, hn::Set(du, kMask)));
    sum = hn::Add(sum, hn::And(bit, hn::Add(below, hn::Set(du, 1u << (2 * kA - 19)))));
  };
  term(std::integral_constant<int, 10>());
  term(std::integral_constant<int, 11>());
  term(std::integral_constant<int, 12>());
  term(std::integral_constant<int, 13>());
  term(std::integral_constant<int, 14>());
  term(std::integral_constant<int, 15>());
  term(std::integral_constant<int, 16>());
  return sum;
}

// Row segment[lane] of the table. Rows of 16 bytes, transposed: a gather takes 39 instructions inside for each vector.
template <class DU, class V = hn::Vec<DU>>
HWY_INLINE void Ex2Coefficients(DU du, hn::Vec<hn::RebindToSigned<DU>> segment, V& c0, V& c1, V& c2) {
  const hn::RebindToSigned<DU> di;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (hn::MaxLanes(DU()) == 4 || hn::MaxLanes(DU()) == 8) {
    HWY_ALIGN int32_t at[hn::MaxLanes(DU())];
    hn::Store(segment, di, at);
    const auto rows = [&](int lane) HWY_ATTR {  // of this lane and the one four further
      const hn::FixedTag<uint32_t, 4> d4;
      const auto load = [&](int i)
                            HWY_ATTR { return hn::Load(d4, reinterpret_cast<const uint32_t*>(kEx2Table.row[at[i]])); };
      if constexpr (hn::MaxLanes(DU()) == 8) {
        return hn::Combine(du, load(lane + 4), load(lane));
      } else {
        return load(lane);
      }
    };
    const V r0 = rows(0), r1 = rows(1), r2 = rows(2), r3 = rows(3);
    const V low0 = hn::InterleaveLower(du, r0, r2), low1 = hn::InterleaveLower(du, r1, r3);
    c0 = hn::InterleaveLower(du, low0, low1);
    c1 = hn::InterleaveUpper(du, low0, low1);
    c2 = hn::InterleaveLower(du, hn::InterleaveUpper(du, r0, r2), hn::InterleaveUpper(du, r1, r3));
    return;
  }
#endif
  const auto index = hn::ShiftLeft<2>(segment);
  c0 = hn::BitCast(du, hn::GatherIndex(di, kEx2Table.row[0], index));
  c1 = hn::BitCast(du, hn::GatherIndex(di, kEx2Table.row[0] + 1, index));
  c2 = hn::BitCast(du, hn::GatherIndex(di, kEx2Table.row[0] + 2, index));
}

}  // namespace detail

// N5. 2^x. The rule's 64-bit sum has 19 trailing zeros in every term but C0·2^32 (which has 32), so it is
// y = (C0 + ((6114 + C1·d + C2·T) >> 13)) >> 2 with T the truncated square over 2^19; C1·d has 33 bits and is halved.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Ex2(D d, V x) {
  const I32Of<D> di;
  const U32Of<D> du;
  static_assert(numerics::kEx2Round == 6114ll << 19);
  const auto u = hn::BitCast(du, x);
  const auto magnitude = hn::BitCast(di, hn::And(u, hn::Set(du, 0x7fffffff)));
  const auto negative = hn::MaskFromVec(hn::BitCast(di, hn::ShiftRight<31>(hn::BitCast(di, u))));
  const auto exponent = hn::ShiftRight<23>(magnitude);
  const auto significand = hn::Or(hn::And(u, hn::Set(du, 0x7fffff)), hn::Set(du, 0x800000));
  const auto shift = hn::Sub(exponent, hn::Set(di, 127));
  const auto left = hn::Min(hn::Max(shift, hn::Zero(di)), hn::Set(di, 7));
  const auto right = hn::Min(hn::Max(hn::Neg(shift), hn::Zero(di)), hn::Set(di, 31));
  const auto fixed = hn::BitCast(di, hn::Shr(hn::Shl(significand, hn::BitCast(du, left)), hn::BitCast(du, right)));
  const auto whole = hn::Eq(hn::And(fixed, hn::Set(di, 0x7fffff)), hn::Zero(di));
  const auto q = hn::IfThenElse(negative, hn::IfThenElse(whole, hn::Neg(fixed), hn::Not(fixed)), fixed);
  auto n = hn::ShiftRight<23>(q);
  const auto f = hn::BitCast(du, hn::And(q, hn::Set(di, 0x7fffff)));
  const auto low = hn::And(f, hn::Set(du, 0x1ffff));
  const auto segment = hn::BitCast(di, hn::ShiftRight<17>(f));
  hn::Vec<U32Of<D>> c0, c1, c2;
  detail::Ex2Coefficients(du, segment, c0, c1, c2);
  const auto odd = hn::And(low, hn::Set(du, 1));
  const auto rest =
      hn::Add(hn::Add(hn::Mul(c1, odd), hn::Set(du, 6114)), hn::Mul(c2, detail::TruncatedSquare(du, low)));
  const auto half = hn::Add(hn::Mul(c1, hn::ShiftRight<1>(low)), hn::ShiftRight<1>(rest));
  const auto y = hn::BitCast(di, hn::ShiftRight<2>(hn::Add(c0, hn::ShiftRight<12>(half))));
  n = hn::Add(n, hn::ShiftRight<24>(y));  // y = 2^24 carries
  const auto bits = hn::Or(hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))), hn::And(y, hn::Set(di, 0x7fffff)));
  const auto infinity = hn::Set(di, static_cast<int32_t>(numerics::kInf32));
  auto r = hn::IfThenElse(hn::Gt(n, hn::Set(di, 127)), infinity, bits);
  r = hn::IfThenElse(hn::Lt(n, hn::Set(di, -126)), hn::Zero(di), r);
  // From 128 on, and from -256 down, the fixed point above is not wide enough.
  r = hn::IfThenElse(hn::Gt(exponent, hn::Set(di, 133)), hn::IfThenElse(negative, hn::Zero(di), infinity), r);
  r = hn::IfThenElse(hn::Eq(exponent, hn::Zero(di)), hn::Set(di, 0x3f800000), r);
  r = hn::IfThenElse(hn::Gt(magnitude, infinity), hn::Set(di, static_cast<int32_t>(numerics::kNaN32)), r);
  return hn::BitCast(d, r);
}

// N11. Not canonical where NaN: what stores the result makes it so.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Silu(D d, V x) {
  const auto e = Ex2(d, hn::Mul(x, hn::Set(d, -numerics::kLog2E)));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), e));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Tanh(D d, V x) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = Ex2(d, hn::Mul(x, hn::Set(d, 2 * numerics::kLog2E)));
  return hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(one, e)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V GeluTanh(D d, V x) {
  const auto cube = hn::Mul(hn::Set(d, 0.044715f), hn::Mul(x, x));
  const auto inner = hn::Mul(hn::Set(d, 0.7978845608028654f), Fma(d, cube, x, x));
  return hn::Mul(hn::Mul(hn::Set(d, 0.5f), x), hn::Add(hn::Set(d, 1.0f), Tanh(d, inner)));
}

namespace detail {

// The lanes of a step whose exponents the vector form does not cover, one by one by the scalar rule.
template <class D>
HWY_NOINLINE hn::Vec<D> Dot16Scalar(D d, hn::Vec<D> c, hn::Vec<D> fast, hn::Mask<D> bad, const DotRow& a,
                                    const uint16_t* b, size_t stride) {
  const hn::RebindToUnsigned<D> du;
  HWY_ALIGN float from[16], to[16];
  HWY_ALIGN uint32_t redo[16];
  hn::Store(c, d, from);
  hn::Store(fast, d, to);
  hn::Store(hn::BitCast(du, hn::VecFromMask(d, bad)), du, redo);
  for (size_t i = 0; i < hn::Lanes(d); i++) {
    if (redo[i] != 0) to[i] = numerics::dot16(from[i], a.bits, b + i, static_cast<int>(stride));
  }
  return hn::Load(d, to);
}

}  // namespace detail

// N3. One step of the tensor core on every lane: c[lane] + Σ_i a.bits[i]·b[i·stride + lane], any values. The sixteen a
// are the same for all lanes: probabilities against rows of V (lanes = columns of the head), a query against keys laid
// out [dimension][key], or a key against queries laid out [dimension][query]. Reads Lanes(d) elements of each row of b.
// Per 16 products of a lane: 16·(load, mul, scale, convert, add) and 16·(mul, and, max) for the largest exponent.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Dot16(D d, V c, const DotRow& a, const uint16_t* b, size_t stride) {
  const I32Of<D> di;
  if (a.subnormal) return detail::Dot16Scalar(d, c, c, hn::Eq(hn::Zero(d), hn::Zero(d)), a, b, stride);
  const auto magnitude_mask = hn::Set(di, 0x7fffffff);
  auto largest = hn::And(hn::BitCast(di, c), magnitude_mask);
  V product[16];
  for (int i = 0; i < 16; i++) {
    const auto w = LoadBF16(d, b + static_cast<size_t>(i) * stride);
    // |w|·2^exponent(a) has the exponent of the product before its mantissa is normalised; NaN and Inf show as 255.
    const auto e = hn::BitCast(di, hn::Mul(w, hn::Set(d, a.power[i])));
    largest = hn::Max(largest, hn::And(e, magnitude_mask));
    product[i] = hn::Mul(w, hn::Set(d, a.value[i]));
  }
  // Outside [-100, 100] a product may have been rounded or a scale below be out of range.
  const auto exponent = hn::ShiftRight<23>(largest);
  const auto clamped = hn::Min(hn::Max(exponent, hn::Set(di, 27)), hn::Set(di, 227));
  const auto up = hn::BitCast(d, hn::ShiftLeft<23>(hn::Sub(hn::Set(di, 279), clamped)));   // 2^(25 - emax)
  const auto down = hn::BitCast(d, hn::ShiftLeft<23>(hn::Sub(clamped, hn::Set(di, 25))));  // 2^(emax - 25)
  auto s0 = hn::ConvertTo(di, hn::Mul(product[0], up)), s1 = hn::ConvertTo(di, hn::Mul(product[1], up));
  for (int i = 2; i < 16; i += 2) {
    s0 = hn::Add(s0, hn::ConvertTo(di, hn::Mul(product[i], up)));
    s1 = hn::Add(s1, hn::ConvertTo(di, hn::Mul(product[i + 1], up)));
  }
  // Sixteen products stay under 2^31 quanta; with c they may not.
  const auto products = hn::Add(s0, s1), old = hn::ConvertTo(di, hn::Mul(c, up));
  const auto sum = hn::Add(products, old);
  const auto overflow = hn::Lt(hn::And(hn::Xor(products, sum), hn::Xor(old, sum)), hn::Zero(di));
  const auto result = hn::Mul(TowardZero(d, sum), down);
  auto bad = hn::Or(overflow, hn::Ne(exponent, clamped));
  if (HWY_LIKELY(hn::AllFalse(di, bad))) return result;
  // Padding and masked keys: nothing but zeros is a zero, which the result above holds already.
  auto any = hn::Zero(di);
  if (!a.zero) {
    for (size_t i = 0; i < 16; i++) any = hn::Or(any, hn::BitCast(di, LoadBF16(d, b + i * stride)));
  }
  const auto zeros = hn::Eq(hn::Or(largest, hn::And(any, magnitude_mask)), hn::Zero(di));
  bad = hn::AndNot(zeros, bad);
  if (hn::AllFalse(di, bad)) return result;
  return detail::Dot16Scalar(d, c, result, hn::RebindMask(d, bad), a, b, stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif
