#pragma once
// The tensor copy engine (PTX ISA, "cp.async.bulk.tensor"). Coordinates are in elements, innermost first; parts of a
// box outside the tensor arrive as zeros and are not stored, and the whole box counts in the barrier's bytes. A
// CUtensorMap is a __grid_constant__ kernel parameter. One thread issues.
#include <cuda.h>

#include <cstdint>

#include "ops/cuda/hopper/mbarrier.h"

namespace isobit::hopper {

// What the L2 does with the lines.
__device__ inline uint64_t evict_first_policy() {
  uint64_t p;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
  return p;
}
__device__ inline uint64_t evict_last_policy() {
  uint64_t p;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p));
  return p;
}
__device__ inline uint64_t evict_normal_policy() {
  uint64_t p;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
  return p;
}

__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ inline void tma_load_2d(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "l"(policy)
      : "memory");
}
__device__ inline void tma_load_2d(void* to, const CUtensorMap* map, uint64_t* bar, int x, int y, uint64_t policy) {
  tma_load_2d(shared_address(to), map, shared_address(bar), x, y, policy);
}
__device__ inline void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y, int z,
                                   uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}
__device__ inline void tma_load_3d(void* to, const CUtensorMap* map, uint64_t* bar, int x, int y, int z,
                                   uint64_t policy) {
  tma_load_3d(shared_address(to), map, shared_address(bar), x, y, z, policy);
}
// Only to the L2.
__device__ inline void tma_prefetch_3d(const CUtensorMap* map, int x, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map), "r"(x), "r"(y), "r"(z)
               : "memory");
}
__device__ inline void tma_load_4d(void* to, const CUtensorMap* map, uint64_t* bar, int x, int y, int z, int w,
                                   uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
      : "memory");
}

// To the same place in every CTA of `mask` (bit = rank in the cluster), completing on each one's barrier.
__device__ inline void tma_load_3d_multicast(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y, int z,
                                             uint16_t mask, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "h"(mask), "l"(policy)
      : "memory");
}

__device__ inline void tma_load_4d_multicast(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y, int z,
                                             int w, uint16_t mask, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7, %8;" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w), "h"(mask), "l"(policy)
      : "memory");
}

// Orders this thread's ordinary stores to shared memory before later reads by the copy engine or the tensor cores; a
// barrier among the threads follows it.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void tma_store_2d(const CUtensorMap* map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
}
__device__ inline void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// At most `pending` store groups of this thread still read shared memory.
template <int pending>
__device__ inline void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
// At most `pending` store groups of this thread are unfinished.
template <int pending>
__device__ inline void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace isobit::hopper
