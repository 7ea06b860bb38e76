// dot16 on vectors, one lane an output: the chain over weights unpacked to f32 and their exponents' bytes, for the
// GEMMs whose operands' products are exact in f32. gemm_kernel.cpp says when that is so for bf16, gemm_f16.cpp for f16.
// Include after hwy/highway.h inside a file compiled by foreach_target (per-target include guard below).
#if defined(ISOBIT_OPS_CPU_CHAIN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOBIT_OPS_CPU_CHAIN_INL_H_
#undef ISOBIT_OPS_CPU_CHAIN_INL_H_
#else
#define ISOBIT_OPS_CPU_CHAIN_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "ops/cpu/gemm_kernel.h"
#include "ops/cpu/simd-inl.h"
#include "ops/cpu/simd_targets.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

using V = hn::Vec<F32>;
using I32 = I32Of<F32>;
using U32 = U32Of<F32>;
using VI = hn::Vec<I32>;
using VU = hn::Vec<U32>;
constexpr F32 kF;
constexpr I32 kI;
constexpr U32 kU;

HWY_INLINE size_t Width() { return hn::Lanes(kF); }

HWY_INLINE V LoadF16(const std::byte* p) {
  const hn::Rebind<hwy::float16_t, F32> d16;
  return hn::PromoteTo(kF, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}
// For each lane, in its top byte, the largest (biased) exponent of the 16 products of a step; at most what all
// weights' are raised by where all are zero. Below the top byte: anything.
HWY_INLINE VU LargestExponent(const uint8_t* exponent, const uint8_t* below) {
#if HWY_TARGET == HWY_SCALAR
  int largest = 0;
  for (int j = 0; j < 4; j++) {
    for (int i = 0; i < 4; i++) largest = std::max(largest, exponent[j * 4 * kPanel + i] - below[4 * j + i]);
  }
  return hn::Set(kU, static_cast<uint32_t>(largest) << 24);
#else
  const hn::Repartition<uint8_t, F32> d8;
  const auto four = [&](int j) HWY_ATTR {
    uint32_t activations;
    std::memcpy(&activations, below + 4 * j, 4);
    const auto weights = hn::LoadU(d8, exponent + j * 4 * kPanel);
    return hn::SaturatedSub(weights, hn::BitCast(d8, hn::Set(kU, activations)));
  };
  auto m = hn::Max(hn::Max(four(0), four(1)), hn::Max(four(2), four(3)));
  m = hn::Max(m, hn::BitCast(d8, hn::ShiftLeft<16>(hn::BitCast(kU, m))));
  m = hn::Max(m, hn::BitCast(d8, hn::ShiftLeft<8>(hn::BitCast(kU, m))));
  return hn::BitCast(kU, m);
#endif
}

// 2^(25-E), E the larger of the top byte of `products` and c's exponent.
HWY_INLINE V ScaleUp(VU products, V c) {
  const VU magnitude = hn::Add(hn::BitCast(kU, c), hn::BitCast(kU, c));  // without the sign
#if HWY_TARGET == HWY_SCALAR
  const VU largest = hn::Max(products, magnitude);
#else
  const hn::Repartition<uint8_t, F32> d8;
  const VU largest = hn::BitCast(kU, hn::Max(hn::BitCast(d8, products), hn::BitCast(d8, magnitude)));
#endif
  const VU exponent = hn::And(hn::ShiftRight<1>(largest), hn::Set(kU, 0x7f800000));
  return hn::BitCast(kF, hn::Sub(hn::Set(kU, 279u << 23), exponent));
}

// 2^(E-25) from 2^(25-E).
HWY_INLINE V ScaleDown(V up) { return hn::BitCast(kF, hn::Sub(hn::Set(kU, 254u << 23), hn::BitCast(kU, up))); }

// k of a panel, unpacked: weights [k][kPanel] and their exponents [k / 4][column][k % 4].
struct Slice {
  const float* w;
  const uint8_t* exponent;
};

constexpr int kMostPanels = 2;

struct RowPointers {
  const float* value;
  const uint8_t* below;
  float* acc[kMostPanels];
};

// Columns that one broadcast of an activation, which takes a slot of the vector unit, serves in each panel.
constexpr int kChainVectors = hn::MaxLanes(kF) == kPanel ? 1 : 2;
// Four chains hide each other's latency; eight would not stay in registers.
template <int kPanels>
constexpr int kChainRows = 4 / kChainVectors / kPanels;

// `steps` steps of the chains of kRows rows in kPanels panels, at kChainVectors vectors of lanes from column c on. The
// rounding mode must be toward zero (class TowardZeroMode).
template <int kRows, int kPanels>
HWY_INLINE void Chain(const Slice* slices, int64_t steps, const RowPointers* rows, size_t c) {
  constexpr int kColumns = kPanels * kChainVectors;
  V acc[kRows][kColumns], up[kRows][kColumns];
  VI sum[kRows][kColumns];
  const auto column = [c](int v) HWY_ATTR { return c + static_cast<size_t>(v % kChainVectors) * Width(); };
  const auto sums = [&](int r, int v) HWY_ATTR { return rows[r].acc[v / kChainVectors] + column(v); };
  for (int r = 0; r < kRows; r++) {
    for (int v = 0; v < kColumns; v++) acc[r][v] = hn::LoadU(kF, sums(r, v));
  }
  for (int64_t s = 0; s < steps; s++) {
    for (int r = 0; r < kRows; r++) {
      for (int v = 0; v < kColumns; v++) {
        const uint8_t* e = slices[v / kChainVectors].exponent + s * 16 * kPanel + 4 * column(v);
        up[r][v] = ScaleUp(LargestExponent(e, rows[r].below + 16 * s), acc[r][v]);
        sum[r][v] = Truncate(kF, hn::Mul(acc[r][v], up[r][v]));
      }
    }
    ISOBIT_UNROLL(16)
    for (int i = 0; i < 16; i++) {
      for (int r = 0; r < kRows; r++) {
        const V x = hn::Set(kF, rows[r].value[16 * s + i]);
        for (int v = 0; v < kColumns; v++) {
          const float* w = slices[v / kChainVectors].w + (s * 16 + i) * kPanel + column(v);
          const V product = hn::Mul(hn::LoadU(kF, w), x);
          sum[r][v] = Settle(hn::Add(sum[r][v], Truncate(kF, hn::Mul(product, up[r][v]))));
        }
      }
    }
    for (int r = 0; r < kRows; r++) {
      for (int v = 0; v < kColumns; v++) acc[r][v] = hn::Mul(CutToFloat(kF, sum[r][v]), ScaleDown(up[r][v]));
    }
  }
  for (int r = 0; r < kRows; r++) {
    for (int v = 0; v < kColumns; v++) hn::StoreU(hn::Add(acc[r][v], hn::Zero(kF)), kF, sums(r, v));
  }
}

// Not inlined: no arithmetic may move in or out, where the rounding mode is another.
template <int kRows, int kPanels>
HWY_NOINLINE void ChainPanels(const Slice* slices, int64_t steps, const RowPointers* rows) {
  for (size_t c = 0; c < kPanel; c += kChainVectors * Width()) Chain<kRows, kPanels>(slices, steps, rows, c);
}

// Rows' chains over slices of kPanels panels, as many rows at once as are worth it.
template <int kPanels>
class RowChains {
 public:
  HWY_INLINE RowChains(const Slice* slices, int64_t steps) : slices_(slices), steps_(steps) {}

  HWY_INLINE void add(const RowPointers& row) {
    rows_[count_++] = row;
    if (count_ < kChainRows<kPanels>) return;
    ChainPanels<kChainRows<kPanels>, kPanels>(slices_, steps_, rows_);
    count_ = 0;
  }
  HWY_INLINE void finish() {
    for (int r = 0; r < count_; r++) ChainPanels<1, kPanels>(slices_, steps_, rows_ + r);
  }

 private:
  const Slice* slices_;
  int64_t steps_;
  RowPointers rows_[kChainRows<kPanels>];
  int count_ = 0;
};

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif
