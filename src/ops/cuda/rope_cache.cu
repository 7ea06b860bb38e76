// From the fused projection to attention's inputs: QK-norm (N8), rotation (N9), one rounding, k and v into the cache
// (N21). Bytes: 4 read and 2 written an element, the tables from cache.
//
// A warp a head of a token. A lane holds kPer neighbouring elements, so that the norm's tree (whose empty lanes add +0,
// which changes nothing) is one inside a lane and then between lanes; pairs of the rotation meet in shared memory.
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "numerics/rope.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {
namespace {

constexpr int kWarps = 8;

template <int kPer>
__device__ void load_head(const float* in, int lane, int dim, float* x) {
  constexpr int kUnit = kPer < 4 ? kPer : 4;
#pragma unroll
  for (int e = 0; e < kPer; e += kUnit) {
    const int i = lane * kPer + e;
#pragma unroll
    for (int u = 0; u < kUnit; u++) x[e + u] = 0.0f;
    if (i >= dim) continue;
    if constexpr (kUnit == 4) {
      const float4 v = *reinterpret_cast<const float4*>(in + i);
      x[e] = v.x, x[e + 1] = v.y, x[e + 2] = v.z, x[e + 3] = v.w;
    } else if constexpr (kUnit == 2) {
      const float2 v = *reinterpret_cast<const float2*>(in + i);
      x[e] = v.x, x[e + 1] = v.y;
    } else {
      x[e] = in[i];
    }
  }
}

template <int kPer>
__device__ void normalise(const float* weight, float eps, int lane, int dim, float* x) {
  float a[kPer];
#pragma unroll
  for (int e = 0; e < kPer; e++) a[e] = numerics::ffma(x[e], x[e], 0.0f);
#pragma unroll
  for (int h = 1; h < kPer; h *= 2) {
#pragma unroll
    for (int e = 0; e < kPer; e += 2 * h) a[e] = numerics::fadd(a[e], a[e + h]);
  }
#pragma unroll
  for (int h = 1; h < 32; h *= 2) a[0] = numerics::fadd(a[0], __shfl_xor_sync(0xffffffff, a[0], h));
  const float scale = numerics::rms_scale(a[0], dim, eps);
#pragma unroll
  for (int e = 0; e < kPer; e++) {
    const int i = lane * kPer + e;
    if (i < dim) x[e] = numerics::rms_value(x[e], scale, weight[i]);
  }
}

// buffer: [kPer·32] of this warp.
template <int kPer>
__device__ void rotate(const RopeCacheArgs& a, int64_t position, int lane, float* buffer, float* x) {
#pragma unroll
  for (int e = 0; e < kPer; e++) buffer[lane * kPer + e] = x[e];
  __syncwarp();
  const int half = a.rope_dim / 2;
  const float* cos = a.cos + position * half;
  const float* sin = a.sin + position * half;
  for (int i = lane; i < half; i += 32) {
    float& x0 = buffer[a.layout == RopeLayout::kInterleaved ? 2 * i : i];
    float& x1 = buffer[a.layout == RopeLayout::kInterleaved ? 2 * i + 1 : i + half];
    const numerics::Rotated r = numerics::rope_rotate(x0, x1, {cos[i], sin[i]});
    x0 = r.x0;
    x1 = r.x1;
  }
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kPer; e++) x[e] = buffer[lane * kPer + e];
}

// Whether both elements are finite; one that is not becomes +0 where `replace` asks for it.
__device__ bool check_finite(uint32_t& packed, uint32_t exponent, bool replace) {
  const bool low = (packed & exponent) != exponent, high = (packed & exponent << 16) != exponent << 16;
  if (replace && !low) packed &= 0xffff0000;
  if (replace && !high) packed &= 0x0000ffff;
  return low && high;
}

template <int kPer>
__device__ bool store_16(uint16_t* out, DType type, bool to_cache, int lane, int dim, const float* x) {
  constexpr int kUnit = kPer < 4 ? kPer : 4;
  const bool half = type == DType::kF16;
  const uint32_t exponent = half ? 0x7c00 : 0x7f80;
  bool finite = true;
#pragma unroll
  for (int e = 0; e < kPer; e += kUnit) {
    const int i = lane * kPer + e;
    if (i >= dim) continue;
    if constexpr (kUnit == 1) {
      uint32_t v = half ? pack_f16(x[e], 0.0f) : pack_bf16(x[e], 0.0f);
      finite &= check_finite(v, exponent, to_cache);
      out[i] = static_cast<uint16_t>(v);
    } else {
      uint32_t v[2] = {};
#pragma unroll
      for (int u = 0; u < kUnit; u += 2) {
        v[u / 2] = half ? pack_f16(x[e + u], x[e + u + 1]) : pack_bf16(x[e + u], x[e + u + 1]);
        finite &= check_finite(v[u / 2], exponent, to_cache);
      }
      if constexpr (kUnit == 4) {
        *reinterpret_cast<uint2*>(out + i) = make_uint2(v[0], v[1]);
      } else {
        *reinterpret_cast<uint32_t*>(out + i) = v[0];
      }
    }
  }
  return finite;
}

template <int kPer>
__device__ bool store_e4m3(uint8_t* out, float scale, int lane, int dim, const float* x) {
  bool finite = true;
#pragma unroll
  for (int e = 0; e < kPer; e++) {
    const int i = lane * kPer + e;
    if (i >= dim) continue;
    const uint8_t v = numerics::e4m3_value(x[e], scale);
    const bool ok = (numerics::bits(x[e]) & numerics::kInf32) != numerics::kInf32 && (v & 0x7f) != 0x7f;
    out[i] = ok ? v : 0;
    finite &= ok;
  }
  return finite;
}

template <int kPer>
__device__ bool store_cache(const RopeCacheArgs& a, int64_t slot, int head, bool key, int lane, const float* x) {
  const KvCacheView& c = a.cache;
  const int64_t page = slot / c.page_size, offset = slot % c.page_size;
  const int64_t first = ((page * c.kv_heads + head) * c.page_size + offset) * c.head_dim;
  void* base = key ? c.k : c.v;
  if (c.type == DType::kF8E4M3) {
    return store_e4m3<kPer>(static_cast<uint8_t*>(base) + first, key ? c.k_scale[head] : c.v_scale[head], lane,
                            c.head_dim, x);
  }
  return store_16<kPer>(static_cast<uint16_t*>(base) + first, c.type, true, lane, c.head_dim, x);
}

template <int kPer>
__global__ __launch_bounds__(kWarps * 32) void rope_cache_kernel(RopeCacheArgs a) {
  __shared__ float buffers[kWarps][kPer * 32];
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int kv_heads = a.cache.kv_heads, dim = a.cache.head_dim, heads = a.q_heads + 2 * kv_heads;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + warp, token = item / heads;
  if (token >= a.count) return;
  const int head = static_cast<int>(item % heads);
  const int64_t slot = a.slots[token], position = a.positions[token];
  if (slot < 0) return;
  // The engine lets neither through; a request that had them ends.
  if (slot >= a.cache.pages * a.cache.page_size || (a.cos != nullptr && (position < 0 || position >= a.max_position))) {
    if (a.nonfinite != nullptr) a.nonfinite[token] = 1;
    return;
  }
  float x[kPer];
  load_head<kPer>(a.qkv + (token * heads + head) * dim, lane, dim, x);
  const bool is_q = head < a.q_heads, is_v = head >= a.q_heads + kv_heads;
  const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
  if (norm != nullptr) normalise<kPer>(norm, a.norm_eps, lane, dim, x);
  if (!is_v && a.cos != nullptr) rotate<kPer>(a, position, lane, buffers[warp], x);
  bool finite = true;
  if (is_q) {
    finite = store_16<kPer>(a.q + (token * a.q_heads + head) * dim, a.type, false, lane, dim, x);
  } else {
    const int kv_head = head - a.q_heads - (is_v ? kv_heads : 0);
    finite = store_cache<kPer>(a, slot, kv_head, !is_v, lane, x);
  }
  if (!finite && a.nonfinite != nullptr) a.nonfinite[token] = 1;
}

}  // namespace

void launch_rope_cache(const RopeCacheArgs& args, const KernelContext& context) {
  if (args.count == 0) return;
  const int64_t warps = args.count * (args.q_heads + 2 * args.cache.kv_heads);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((warps + kWarps - 1) / kWarps));
  shape.block = dim3(kWarps * 32);
  const int dim = args.cache.head_dim;
  auto* kernel = dim <= 32    ? rope_cache_kernel<1>
                 : dim <= 64  ? rope_cache_kernel<2>
                 : dim <= 128 ? rope_cache_kernel<4>
                 : dim <= 256 ? rope_cache_kernel<8>
                 : dim <= 512 ? rope_cache_kernel<16>
                              : rope_cache_kernel<32>;
  launch("rope_cache", kernel, shape, context.stream, args);
}

}  // namespace isobit::cuda
