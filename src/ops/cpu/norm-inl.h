// N8's sum on vectors: its 1024 lanes are an array, whatever the width of a vector. Include after hwy/highway.h inside
// a file compiled by foreach_target.
#if defined(ISOBIT_OPS_CPU_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOBIT_OPS_CPU_NORM_INL_H_
#undef ISOBIT_OPS_CPU_NORM_INL_H_
#else
#define ISOBIT_OPS_CPU_NORM_INL_H_
#endif

#include <algorithm>

#include "numerics/norm.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

// lane[0..count) become their neighbours' sums, count / 2 of them. count is a power of two.
HWY_INLINE void AddNeighbours(float* lane, size_t count) {
  size_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const F32 d;
  const size_t n = hn::Lanes(d);
  for (; 2 * (j + n) <= count; j += n) {
    const auto low = hn::Load(d, lane + 2 * j), high = hn::Load(d, lane + 2 * j + n);
    hn::Store(hn::Add(hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low)), d, lane + j);
  }
#endif
  for (; 2 * j < count; j++) lane[j] = numerics::fadd(lane[2 * j], lane[2 * j + 1]);
}

// N8's sum of squares (numerics::sum_of_squares).
inline HWY_NOINLINE float SumOfSquares(const float* x, size_t n) {
  const F32 d;
  // Lanes past n stay +0 and add nothing: the tree is over the power of two that holds n.
  size_t lanes = 1;
  while (lanes < n && lanes < numerics::kSumLanes) lanes *= 2;
  HWY_ALIGN float lane[numerics::kSumLanes];
  std::fill_n(lane, lanes, 0.0f);
  for (size_t start = 0; start < n; start += numerics::kSumLanes) {
    const size_t count = std::min<size_t>(n - start, numerics::kSumLanes);
    size_t j = 0;
    for (; j + hn::Lanes(d) <= count; j += hn::Lanes(d)) {
      const auto v = hn::LoadU(d, x + start + j);
      hn::Store(Fma(d, v, v, hn::Load(d, lane + j)), d, lane + j);
    }
    for (; j < count; j++) lane[j] = numerics::ffma(x[start + j], x[start + j], lane[j]);
  }
  for (; lanes > 1; lanes /= 2) AddNeighbours(lane, lanes);
  return lane[0];
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#endif
