#pragma once
// Quantisation to e4m3 on the device (rule N18), a warp a block of 128 values, and what stands before it: one rounding,
// RMSNorm (N8) by 256 threads of four neighbours each.
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "ops/cuda/device_math.h"
#include "ops/gemm_fp8.h"

namespace isobit::cuda {

__device__ inline float widen(uint32_t bits, DType type) {
  return type == DType::kBF16 ? numerics::bf16_to_f32(static_cast<uint16_t>(bits))
                              : numerics::f16_to_f32(static_cast<uint16_t>(bits));
}
__device__ inline float round_once(float v, bool half) {
  return half ? numerics::f16_to_f32(static_cast<uint16_t>(pack_f16(v, v)))
              : numerics::bf16_to_f32(static_cast<uint16_t>(pack_bf16(v, v)));
}
// Rule N11 of a pair; kind is kSilu or kGelu.
__device__ inline float gated_product(GatedKind kind, float gate, float up) {
  return numerics::fmul(kind == GatedKind::kSilu ? silu(gate) : gelu_tanh(gate), up);
}
// Two values to e4m3, the first in the low byte: round to nearest even, saturate at ±448, NaN to 0x7f (rule N2).
__device__ inline uint32_t pack_e4m3(float low, float high) {
  uint16_t r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
  return r;
}
__device__ inline float warp_max(float v) {
#pragma unroll
  for (int h = 1; h < 32; h *= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, h));
  return v;
}
// A block of 128 values, four neighbours a lane: their e4m3 bytes, and the block's scale. The whole warp calls.
__device__ inline uint32_t quantize_four(const float4& v, float& scale) {
  using numerics::fdiv;
  scale = numerics::e4m3_scale(warp_max(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)))));
  return pack_e4m3(fdiv(v.x, scale), fdiv(v.y, scale)) | pack_e4m3(fdiv(v.z, scale), fdiv(v.w, scale)) << 16;
}

// A sum of squares from a thread's lanes 4t to 4t + 3 of N8's 1024: two levels of its tree in the thread, five in the
// warp; the last three are between the warps (sum_of_warps).
__device__ inline float sum_of_lanes(const float4& a) {
  using numerics::fadd;
  float sum = fadd(fadd(a.x, a.y), fadd(a.z, a.w));
#pragma unroll
  for (int h = 1; h < 32; h *= 2) sum = fadd(sum, __shfl_xor_sync(0xffffffff, sum, h));
  return sum;
}
__device__ inline float sum_of_warps(const float* warps) {
  using numerics::fadd;
  return fadd(fadd(fadd(warps[0], warps[1]), fadd(warps[2], warps[3])),
              fadd(fadd(warps[4], warps[5]), fadd(warps[6], warps[7])));
}
__device__ inline void accumulate_squares(float4& lanes, const float4& x) {
  using numerics::ffma;
  lanes.x = ffma(x.x, x.x, lanes.x);
  lanes.y = ffma(x.y, x.y, lanes.y);
  lanes.z = ffma(x.z, x.z, lanes.z);
  lanes.w = ffma(x.w, x.w, lanes.w);
}

}  // namespace isobit::cuda
