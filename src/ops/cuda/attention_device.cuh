#pragma once
// What the attention kernels share: rule N10's scalar steps with the hardware's ex2, and where keys lie and are seen.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ops/cuda/attention_launch.h"
#include "ops/cuda/device_math.h"

namespace isobit::cuda {

__device__ inline float minus_inf() { return __uint_as_float(0xff800000u); }

template <bool kF16>
__device__ inline uint16_t round16(float x) {
  if constexpr (kF16) return __half_as_ushort(__float2half_rn(x));
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

// Two values rounded and packed, the first in the low half.
template <bool kF16>
__device__ inline uint32_t round16x2(float low, float high) {
  return kF16 ? pack_f16(low, high) : pack_bf16(low, high);
}

__device__ inline float capped_score(const ScoreScale& s, float dot) {
  return __fmul_rn(s.cap, tanh(__fmul_rn(dot, s.inner)));
}

// numerics::attention_grow.
__device__ inline float attention_grow(float& r, float block_max, float factor) {
  const float b = __fmul_rn(block_max, factor);
  if (!(b > r)) return 1.0f;
  const float alpha = ex2(__fsub_rn(r, b));
  r = b;
  return alpha;
}

struct FoldFactors {
  float r, a, b;
};
__device__ inline FoldFactors attention_fold(float r, float r_later) {
  const float m = fmaxf(r, r_later);
  return {m, ex2(__fsub_rn(r, m)), ex2(__fsub_rn(r_later, m))};
}
__device__ inline float attention_fold_value(float x, float later, const FoldFactors& f) {
  return __fmaf_rn(later, f.b, __fmul_rn(x, f.a));
}
__device__ inline float attention_sink(float l, float sink, float r) {
  return __fadd_rn(l, ex2(__fsub_rn(__fmul_rn(sink, numerics::kLog2E), r)));
}

// Eight e4m3 elements, widened exactly.
template <bool kF16>
__device__ inline uint4 widen_e4m3(uint2 packed) {
  uint32_t out[4];
  for (int i = 0; i < 4; i++) {
    const uint32_t word = i < 2 ? packed.x : packed.y;
    const uint16_t pair = static_cast<uint16_t>(word >> (16 * (i & 1)));
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    const float low = __half2float(__ushort_as_half(static_cast<uint16_t>(halves)));
    const float high = __half2float(__ushort_as_half(static_cast<uint16_t>(halves >> 16)));
    out[i] = kF16 ? halves : pack_bf16(low, high);
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

}  // namespace isobit::cuda
