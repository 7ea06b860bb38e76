#pragma once
// The warpgroup matrix instruction m64nNk16 for bf16 and f16 with f32 accumulators (PTX ISA, "wgmma"): one step of rule
// N3 for 64×N outputs. N, operand order, A in shared memory or registers, B K-major or MN-major: all the same bits.
//
// Accumulator layout: thread t of the warpgroup, w = t/32, l = t%32: d[4q + 2h + i] is row 16w + l/4 + 8h, column
// 8q + 2(l%4) + i. A fragment in registers: a[h + 2j] holds row 16w + l/4 + 8h, k = 8j + 2(l%4) and the one after it.
//
// Use: wgmma_fence(); wgmma…; wgmma_commit(); wgmma_wait<pending>(). The accumulators must not be touched between.
#include <cstdint>

#include "numerics/dot.h"
#include "ops/cuda/hopper/mbarrier.h"

namespace isobit::hopper {

// Orders earlier accesses of the accumulator (and A) registers before the next wgmma.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Keeps the compiler from moving uses of the accumulators across this point.
template <int n>
__device__ inline void pin_registers(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Matrix descriptors for tiles in 128-byte swizzled rows (what a tensor map with CU_TENSOR_MAP_SWIZZLE_128B and an
// inner box of 64 elements writes), aligned to 1024 bytes. K-major: 64 elements of K a row; 8-row groups stand
// group_bytes apart (1024 where rows are dense). The next 16 of K are 32 bytes further: descriptor + 2.
__device__ inline uint64_t k_major_descriptor(uint32_t tile, uint32_t group_bytes = 1024) {
  const uint32_t low = ((tile & 0x3ffff) >> 4) | (1u << 16);
  return static_cast<uint64_t>(low) | (static_cast<uint64_t>(group_bytes >> 4) << 32) | (uint64_t{1} << 62);
}
__device__ inline uint64_t k_major_descriptor(const void* tile, uint32_t group_bytes = 1024) {
  return k_major_descriptor(shared_address(tile), group_bytes);
}
// MN-major (kTransposeB = 1): a row holds 64 elements of N for one k; 8 rows of k follow each other every 128 bytes,
// the next 8 stand group_bytes apart, the next 64 of N n_block_bytes. The next 16 of K are 2 · group_bytes further:
// descriptor + 128 where rows are dense.
__device__ inline uint64_t mn_major_descriptor(uint32_t tile, uint32_t n_block_bytes, uint32_t group_bytes = 1024) {
  return (static_cast<uint64_t>(tile & 0x3ffff) >> 4) | (static_cast<uint64_t>(n_block_bytes >> 4) << 16) |
         (static_cast<uint64_t>(group_bytes >> 4) << 32) | (uint64_t{1} << 62);
}
__device__ inline uint64_t mn_major_descriptor(const void* tile, uint32_t n_block_bytes) {
  return mn_major_descriptor(shared_address(tile), n_block_bytes);
}

template <int n>
struct WgmmaShape;

#include "ops/cuda/hopper/wgmma_shapes.inc"

// d = a·b + (accumulate ? d : 0); a: descriptor, or a fragment in registers.
template <int n, numerics::Operand kind = numerics::Operand::kBF16, int transpose_b = 0>
__device__ inline void wgmma(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) {
  WgmmaShape<n>::template run<kind, transpose_b>(d, a, b, accumulate ? 1 : 0);
}
template <int n, numerics::Operand kind = numerics::Operand::kBF16, int transpose_b = 0>
__device__ inline void wgmma(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  WgmmaShape<n>::template run<kind, transpose_b>(d, a, b, accumulate ? 1 : 0);
}

}  // namespace isobit::hopper
