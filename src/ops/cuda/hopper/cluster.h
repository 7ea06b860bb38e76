#pragma once
// Thread block clusters and each other's shared memory (PTX ISA, "barrier.cluster", "mapa").
#include <cstdint>

#include "ops/cuda/hopper/mbarrier.h"

namespace isobit::hopper {

__device__ inline uint32_t cluster_rank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ inline uint32_t cluster_size() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}

// Every thread of every CTA of the cluster takes part; memory before an arrive is visible after the wait.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The address, in the cluster's window, of what `shared` (an address in this CTA's shared memory) is in CTA `rank`.
__device__ inline uint32_t map_shared(uint32_t shared, uint32_t rank) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(shared), "r"(rank));
  return r;
}
__device__ inline float4 load_cluster_f4(uint32_t address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ inline float load_cluster_f32(uint32_t address) {
  float v;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
__device__ inline void store_cluster_f32(uint32_t address, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}

// Stores to the same place in CTA `rank`; its barrier `bar` counts the 4 bytes. Nothing else need order the store.
__device__ inline void store_async_f32(const float* to, float v, const uint64_t* bar, uint32_t rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   map_shared(shared_address(to), rank)),
               "f"(v), "r"(map_shared(shared_address(bar), rank))
               : "memory");
}
// The same for 16 bytes, to an aligned place.
__device__ inline void store_async_16(const void* to, const uint4& v, const uint64_t* bar, uint32_t rank) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   map_shared(shared_address(to), rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(map_shared(shared_address(bar), rank))
               : "memory");
}
// Copies this CTA's shared memory (16-byte aligned, `bytes` a multiple of 16) to the same place in CTA `rank`, whose
// barrier `bar` counts the bytes. One thread, after a fence_async_proxy of those that wrote.
__device__ inline void copy_to_cta(const void* from, uint32_t bytes, const uint64_t* bar, uint32_t rank) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   map_shared(shared_address(from), rank)),
               "r"(shared_address(from)), "r"(bytes), "r"(map_shared(shared_address(bar), rank))
               : "memory");
}

// Atomic for the whole GPU, ordering what was read and written before and after.
__device__ inline uint32_t add_acq_rel(uint32_t* to, uint32_t v) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(v) : "memory");
  return before;
}

}  // namespace isobit::hopper
