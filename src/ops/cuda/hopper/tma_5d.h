#pragma once
// tma.h's copies for tensors of five dimensions, alone and to several CTAs of a cluster.
#include "ops/cuda/hopper/tma.h"

namespace isobit::hopper {

__device__ inline void tma_load_5d(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int v, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, 0, 0, 0, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(v), "l"(policy)
      : "memory");
}

// To the same place in every CTA of `mask` (bit = rank in the cluster), completing on each one's barrier.
__device__ inline void tma_load_5d_multicast(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int v,
                                             uint16_t mask, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, 0, 0, 0, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(v), "h"(mask), "l"(policy)
      : "memory");
}

}  // namespace isobit::hopper
