#pragma once
// What kernels over rows of values have in common: ordered keys, reductions over a CTA, each other's shared memory. All
// that crosses threads is an integer: ordered keys, counts, masses; so neither the cluster's size nor any order shows.
// S is the kernel's shared memory; it has `warp_sums` and `warp_keys`.
#include <cstdint>

#include "numerics/sampling.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/row_plan.h"

namespace isobit::cuda {

constexpr int kRowWarps = kRowThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffff;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// The same address in the shared memory of CTA `rank` of the cluster.
template <typename T>
__device__ T* peer(T* p, int rank) {
  T* q;
  asm("mapa.u64 %0, %1, %2;" : "=l"(q) : "l"(p), "r"(rank));
  return q;
}

// The value (with +0 for -0) and the id of a candidate_key.
__device__ inline float key_value(uint64_t key) {
  const uint32_t u = static_cast<uint32_t>(key >> 32);
  return numerics::from_bits((u >> 31) != 0 ? u & 0x7fffffff : ~u);
}
__device__ inline uint32_t key_id(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }
constexpr uint32_t kMinusInfinityKey = 0x007fffff, kInfinityKey = 0xff800000;
__device__ inline float order_value(uint32_t key) { return key_value(static_cast<uint64_t>(key) << 32); }

__device__ inline float max_nan(float a, float b) {  // NaN if either is
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}
__device__ inline float max_nan(const float4& v) { return max_nan(max_nan(v.x, v.y), max_nan(v.z, v.w)); }

// hopper::cluster_sync() with a fence of one warp in place of all: for what the CTA's first warp has written, and for
// what all its threads wrote before the CTA's last barrier.
__device__ inline void publish_arrive() {
  if (threadIdx.x < 32) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void publish() {
  publish_arrive();
  hopper::cluster_wait();
}

// The largest key of the CTA, to all threads. Calls between which no other barrier lies need different places.
template <typename S>
__device__ uint32_t cta_max(S& s, int place, uint32_t key) {
  const uint32_t m = __reduce_max_sync(kAllLanes, key);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) s.warp_keys[place][threadIdx.x / 32] = m;
  __syncthreads();
  return __reduce_max_sync(kAllLanes, s.warp_keys[place][lane % kRowWarps]);
}

// The sum of the values of the threads before this one.
template <typename S>
__device__ __noinline__ uint64_t cta_sum_before(S& s, uint64_t v) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint64_t sum = v;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, sum, h);
    if (lane >= h) sum += below;
  }
  __syncthreads();
  if (lane == 31) s.warp_sums[warp] = sum;
  __syncthreads();
  uint64_t before = lane < warp ? s.warp_sums[lane % kRowWarps] : 0;
#pragma unroll
  for (int h = 16; h > 0; h /= 2) before += __shfl_xor_sync(kAllLanes, before, h);
  return before + sum - v;
}

}  // namespace isobit::cuda
