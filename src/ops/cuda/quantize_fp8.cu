// Quantisation of activations to e4m3 (rule N18), alone and behind SwiGLU, GeGLU or RMSNorm: one pass over memory, the
// bytes of the rounding operator followed by plain quantisation. Bytes an element: 2 read (plain; 4 or 8 behind SwiGLU,
// 4 behind RMSNorm), 1 written; an IEEE division an element, about 10 instructions, stays under that.
//
// A warp has a block of 128 values, four neighbours a lane, so the largest magnitude is five shuffles away. Plain and
// SwiGLU: a warp takes kBlocks blocks of a row, a CTA eight rows, whose scales are neighbours. RMSNorm: a CTA a row;
// warp w has block 8v + w of every 1024 values, which are the sum's lanes 128w to 128w + 127 (rule N8).
#include <algorithm>

#include "ops/cuda/gemm_fp8.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/quantize_device.cuh"

namespace isobit::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = 4;  // of a row that a warp has in flight

struct QuantizeParams {
  const void* x;
  DType x_type;
  int64_t count, n;
  const float* weight;
  float eps;
  bool round_half;  // to f16, else bf16
  uint8_t* out;
  float* scale;
  int64_t row_bytes, scale_stride;
};

// Values at, …, at + 3 of a row of n that begins at `row` (in elements); zeros past its end.
__device__ float4 load_four(const QuantizeParams& p, int64_t row, int64_t at) {
  if (p.x_type == DType::kF32) {
    const float* x = static_cast<const float*>(p.x) + row + at;
    if (p.n % 4 == 0) return at < p.n ? *reinterpret_cast<const float4*>(x) : make_float4(0, 0, 0, 0);
    return make_float4(at < p.n ? x[0] : 0.0f, at + 1 < p.n ? x[1] : 0.0f, at + 2 < p.n ? x[2] : 0.0f,
                       at + 3 < p.n ? x[3] : 0.0f);
  }
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + row + at;
  uint2 v = make_uint2(0, 0);
  if (p.n % 4 == 0) {
    if (at < p.n) v = *reinterpret_cast<const uint2*>(x);
  } else {
    if (at < p.n) v.x = x[0];
    if (at + 1 < p.n) v.x |= static_cast<uint32_t>(x[1]) << 16;
    if (at + 2 < p.n) v.y = x[2];
    if (at + 3 < p.n) v.y |= static_cast<uint32_t>(x[3]) << 16;
  }
  return make_float4(widen(v.x & 0xffff, p.x_type), widen(v.x >> 16, p.x_type), widen(v.y & 0xffff, p.x_type),
                     widen(v.y >> 16, p.x_type));
}

// One block of a row, four values a lane; a lane whose values lie past n has zeros. The whole warp calls.
__device__ void quantize_block(const QuantizeParams& p, int64_t row, int64_t block, const float4& v) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float scale;
  const uint32_t packed = quantize_four(v, scale);
  *reinterpret_cast<uint32_t*>(p.out + row * p.row_bytes + block * kFp8Block + lane * 4) = packed;
  if (lane == 0) p.scale[block * p.scale_stride + row] = scale;
}

template <GatedKind kKind>
__global__ __launch_bounds__(kThreads) void quantize_fp8_kernel(QuantizeParams p) {
  constexpr bool kGated = kKind != GatedKind::kNone;
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t id = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t row = id % p.count, first = id / p.count * kBlocks, blocks = p.row_bytes / kFp8Block;
  if (first >= blocks) return;
  float4 v[kBlocks], up[kGated ? kBlocks : 1];
  const int64_t begin = row * p.n * (kGated ? 2 : 1);
#pragma unroll
  for (int b = 0; b < kBlocks; b++) {
    const int64_t at = (first + b) * kFp8Block + lane * 4;
    v[b] = load_four(p, begin, at);
    if constexpr (kGated) up[b] = load_four(p, begin + p.n, at);
  }
#pragma unroll
  for (int b = 0; b < kBlocks; b++) {
    if (first + b >= blocks) continue;
    if constexpr (kGated) {
      v[b] = make_float4(round_once(gated_product(kKind, v[b].x, up[b].x), p.round_half),
                         round_once(gated_product(kKind, v[b].y, up[b].y), p.round_half),
                         round_once(gated_product(kKind, v[b].z, up[b].z), p.round_half),
                         round_once(gated_product(kKind, v[b].w, up[b].w), p.round_half));
    }
    quantize_block(p, row, first + b, v[b]);
  }
}

// The gated product alone, where it is not quantised at once (a trace, or a matrix of another kind behind it).
template <GatedKind kKind>
__global__ __launch_bounds__(kThreads) void gate_kernel(GateArgs a) {
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= a.n) return;
  for (int64_t row = blockIdx.y; row < a.count; row += gridDim.y) {
    const float v = gated_product(kKind, a.x[row * 2 * a.n + j], a.x[row * 2 * a.n + a.n + j]);
    a.out[row * a.n + j] = static_cast<uint16_t>(a.out_type == DType::kF16 ? pack_f16(v, v) : pack_bf16(v, v));
  }
}

constexpr int kKept = 8;  // float4s of the row that a thread keeps in registers; a longer row is read twice

__global__ __launch_bounds__(kThreads) void rms_norm_quantize_fp8_kernel(QuantizeParams p) {
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int64_t row = blockIdx.x, begin = row * p.n, first = threadIdx.x * 4;
  float4 x[kKept], lanes = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int v = 0; v < kKept; v++) x[v] = load_four(p, begin, first + v * numerics::kSumLanes);
#pragma unroll
  for (int v = 0; v < kKept; v++) accumulate_squares(lanes, x[v]);
  constexpr int64_t kRest = int64_t{kKept} * numerics::kSumLanes;
  for (int64_t j = first + kRest; j < p.n; j += numerics::kSumLanes) accumulate_squares(lanes, load_four(p, begin, j));
  __shared__ float warps[kWarps];
  const float sum = sum_of_lanes(lanes);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  const float scale = numerics::rms_scale(sum_of_warps(warps), p.n, p.eps);

  const auto quantize = [&](const float4& values, int64_t at) {
    const int64_t block = at / kFp8Block;  // the same for a warp
    if (block * kFp8Block >= p.row_bytes) return;
    float w[4], v[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = at + i < p.n ? __ldg(p.weight + at + i) : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[i] = at + i < p.n ? round_once(numerics::rms_value(v[i], scale, w[i]), p.round_half) : 0.0f;
    }
    quantize_block(p, row, block, make_float4(v[0], v[1], v[2], v[3]));
  };
#pragma unroll
  for (int v = 0; v < kKept; v++) quantize(x[v], first + v * numerics::kSumLanes);
  for (int64_t at = first + kRest; at - threadIdx.x % 32 * 4 < p.n; at += numerics::kSumLanes) {
    quantize(load_four(p, begin, at), at);
  }
}

}  // namespace

void launch_quantize_fp8(const QuantizeFp8Args& a, const KernelContext& context) {
  if (a.count == 0) return;
  const QuantizeParams p{
      a.x,     a.x_type,           a.count,       a.n, a.weight, a.eps, a.round_type == DType::kF16, a.out,
      a.scale, fp8_row_bytes(a.n), a.scale_stride};
  LaunchShape shape;
  shape.block = dim3(kThreads);
  if (a.weight != nullptr) {
    shape.grid = dim3(static_cast<unsigned>(a.count));
    launch("rms_norm_quantize_fp8", rms_norm_quantize_fp8_kernel, shape, context.stream, p);
    return;
  }
  const int64_t warps = (fp8_blocks(a.n) + kBlocks - 1) / kBlocks * a.count;
  shape.grid = dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps));
  auto* kernel = a.gated == GatedKind::kSilu   ? quantize_fp8_kernel<GatedKind::kSilu>
                 : a.gated == GatedKind::kGelu ? quantize_fp8_kernel<GatedKind::kGelu>
                                               : quantize_fp8_kernel<GatedKind::kNone>;
  launch("quantize_fp8", kernel, shape, context.stream, p);
}

void launch_gate(const GateArgs& a, const KernelContext& context) {
  if (a.count == 0) return;
  LaunchShape shape;
  shape.block = dim3(kThreads);
  shape.grid = dim3(static_cast<unsigned>((a.n + kThreads - 1) / kThreads),
                    static_cast<unsigned>(std::min<int64_t>(a.count, 32768)));
  launch("gate", a.kind == GatedKind::kSilu ? gate_kernel<GatedKind::kSilu> : gate_kernel<GatedKind::kGelu>, shape,
         context.stream, a);
}

}  // namespace isobit::cuda
