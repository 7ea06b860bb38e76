// From the fused projection to attention's inputs: QK-norm (N8), rotation (N9), one rounding, k and v into the cache
// (N21). Bytes: 4 read and 2 written an element, the tables from cache.
//
// A warp a head of a token. A lane holds kPer neighbouring elements, so that the norm's tree (whose empty lanes add +0,
// which changes nothing) is one inside a lane and then between lanes; pairs of the rotation meet in shared memory.
#include "numerics/kv_cache.h"
#include "numerics/norm.h"
#include "numerics/rope.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/rope_device.h"

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

template <int kCount>
__device__ void load_table(const float* p, float* v) {
  if constexpr (kCount == 4) {
    const float4 t = *reinterpret_cast<const float4*>(p);
    v[0] = t.x, v[1] = t.y, v[2] = t.z, v[3] = t.w;
  } else if constexpr (kCount == 2) {
    const float2 t = *reinterpret_cast<const float2*>(p);
    v[0] = t.x, v[1] = t.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i++) v[i] = p[i];
  }
}

// What a lane needs to turn any head of its token, where heads are 32·kPer elements that all turn: pairs lie in a lane,
// or sixteen lanes apart.
template <int kPer>
struct Turn {
  bool whole = false;
  float cos[kPer], sin[kPer];  // half of them used where pairs lie in a lane

  __device__ void load(const RopeCacheArgs& a, int64_t position, int lane) {
    whole = kPer >= 2 && a.cos != nullptr && a.rope_dim == 32 * kPer;
    if (!whole) return;
    constexpr int kHalf = 16 * kPer, kPairs = kPer > 1 ? kPer / 2 : 1;
    const float* c = a.cos + position * kHalf;
    const float* s = a.sin + position * kHalf;
    if (a.layout == RopeLayout::kInterleaved) {
      load_table<kPairs>(c + lane * kPairs, cos);
      load_table<kPairs>(s + lane * kPairs, sin);
    } else {
      load_table<kPer>(c + lane % 16 * kPer, cos);
      load_table<kPer>(s + lane % 16 * kPer, sin);
    }
  }

  __device__ void apply(RopeLayout layout, int lane, float* x) const {
    if (layout == RopeLayout::kInterleaved) {
#pragma unroll
      for (int i = 0; i < kPer / 2; i++) {
        const numerics::Rotated r = numerics::rope_rotate(x[2 * i], x[2 * i + 1], {cos[i], sin[i]});
        x[2 * i] = r.x0;
        x[2 * i + 1] = r.x1;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kPer; e++) {
      const float other = __shfl_xor_sync(0xffffffff, x[e], 16);
      const float turned = numerics::fmul(other, sin[e]);
      x[e] = numerics::ffma(x[e], cos[e], lane < 16 ? -turned : turned);
    }
  }
};

// buffer: [kPer·32] of this warp.
template <int kPer>
__device__ void rotate(const RopeCacheArgs& a, int64_t position, int lane, float* buffer, float* x) {
  const int half = a.rope_dim / 2;
  const float* cos = a.cos + position * half;
  const float* sin = a.sin + position * half;
#pragma unroll
  for (int e = 0; e < kPer; e++) buffer[lane * kPer + e] = x[e];
  __syncwarp();
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
    out[i] = numerics::cache_e4m3(x[e], scale, finite);
  }
  return finite;
}

template <int kPer>
__device__ bool store_cache(const RopeCacheArgs& a, const CachePlace& place, int head, bool key, int lane,
                            const float* x) {
  const KvCacheView& c = a.cache;
  const int64_t first = place.first + head * place.head_stride;
  void* base = key ? c.k : c.v;
  if (c.type == DType::kF8E4M3) {
    return store_e4m3<kPer>(static_cast<uint8_t*>(base) + first, key ? c.k_scale[head] : c.v_scale[head], lane,
                            c.head_dim, x);
  }
  return store_16<kPer>(static_cast<uint16_t*>(base) + first, c.type, true, lane, c.head_dim, x);
}

// One head, loaded into x already. Returns whether all its elements were finite.
template <int kPer>
__device__ bool finish_head(const RopeCacheArgs& a, int64_t token, int head, const CachePlace& place,
                            const Turn<kPer>& turn, int64_t position, int lane, float* buffer, float* x) {
  const int kv_heads = a.cache.kv_heads, dim = a.cache.head_dim;
  const bool is_q = head < a.q_heads, is_v = head >= a.q_heads + kv_heads;
  const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
  if (norm != nullptr) normalise<kPer>(norm, a.norm_eps, lane, dim, x);
  if (!is_v && turn.whole) {
    turn.apply(a.layout, lane, x);
  } else if (!is_v && a.cos != nullptr) {
    rotate<kPer>(a, position, lane, buffer, x);
  }
  if (is_q) return store_16<kPer>(a.q + (token * a.q_heads + head) * dim, a.type, false, lane, dim, x);
  return store_cache<kPer>(a, place, head - a.q_heads - (is_v ? kv_heads : 0), !is_v, lane, x);
}

// A warp takes kHeads heads of a token, kWarps apart, and asks for all of them at once. The slot and the position are
// asked for before, since the tables wait for them (64 to 50 µs at 4096 tokens of 48 heads of 128); they are the step's
// inputs, which no kernel writes.
template <int kPer, int kHeads>
__global__ __launch_bounds__(kWarps * 32,
                             kHeads > 1 ? 3 : 1) void rope_cache_kernel(const __grid_constant__ RopeCacheArgs a) {
  __shared__ float buffers[kWarps][kPer * 32];
  hopper::launch_dependents();
  const int64_t token = blockIdx.x, slot = a.slots[token], position = a.positions[token];
  hopper::wait_for_predecessors();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = a.cache.head_dim, heads = a.q_heads + 2 * a.cache.kv_heads;
  const int first = static_cast<int>(blockIdx.y) * kWarps * kHeads + warp;
  float x[kHeads][kPer];
#pragma unroll
  for (int h = 0; h < kHeads; h++) {
    const int head = first + h * kWarps;
    if (head < heads) load_head<kPer>(a.qkv + (token * heads + head) * dim, lane, dim, x[h]);
  }
  if (slot < 0) return;
  if (!in_bounds(a, slot, position)) {
    if (a.nonfinite != nullptr) a.nonfinite[token] = 1;
    return;
  }
  Turn<kPer> turn;
  turn.load(a, position, lane);
  const CachePlace place = cache_place(a.cache, slot);
  bool finite = true;
#pragma unroll
  for (int h = 0; h < kHeads; h++) {
    const int head = first + h * kWarps;
    if (head < heads) finite &= finish_head<kPer>(a, token, head, place, turn, position, lane, buffers[warp], x[h]);
  }
  if (!finite && a.nonfinite != nullptr) a.nonfinite[token] = 1;
}

template <int kPer, int kHeads>
void launch_heads(const RopeCacheArgs& args, cudaStream_t stream) {
  const int heads = args.q_heads + 2 * args.cache.kv_heads, per_cta = kWarps * kHeads;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.count), static_cast<unsigned>((heads + per_cta - 1) / per_cta));
  shape.block = dim3(kWarps * 32);
  launch("rope_cache", rope_cache_kernel<kPer, kHeads>, shape, stream, args);
}

}  // namespace

void launch_rope_cache(const RopeCacheArgs& args, const KernelContext& context) {
  if (args.count == 0) return;
  if (args.cache.pages > (int64_t{1} << 32) / args.cache.page_size) {
    throw_unsupported("rope_cache: the cache has 2^32 slots or more; use fewer pages");
  }
  const int dim = args.cache.head_dim;
  const bool many = args.count >= 64;  // few tokens: more warps; many: more bytes in flight
  if (dim <= 32) return launch_heads<1, 1>(args, context.stream);
  if (dim <= 64) return many ? launch_heads<2, 6>(args, context.stream) : launch_heads<2, 1>(args, context.stream);
  if (dim <= 128) return many ? launch_heads<4, 6>(args, context.stream) : launch_heads<4, 1>(args, context.stream);
  if (dim <= 256) return launch_heads<8, 1>(args, context.stream);
  if (dim <= 512) return launch_heads<16, 1>(args, context.stream);
  launch_heads<32, 1>(args, context.stream);
}

}  // namespace isobit::cuda
