#pragma once
// A tile's way out: fragments into shared memory, from there by the copy engine (PTX ISA, "stmatrix",
// "cp.async.bulk.tensor", "cp.async.bulk.prefetch").
#include <cuda.h>

#include <cstdint>

namespace isobit::hopper {

// Four 8×8 matrices of 16-bit elements as the tensor cores' fragments hold them (a register is two neighbours of row
// l / 4): lanes 8i to 8i + 7 name the 16-byte rows of matrix i.
__device__ inline void store_matrices(uint32_t to, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(m0), "r"(m1), "r"(m2),
               "r"(m3)
               : "memory");
}

// tma.h's, from an address in shared memory.
__device__ inline void tma_store_2d(const CUtensorMap* map, uint32_t from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
               "r"(x), "r"(y)
               : "memory");
}

// `bytes` (a multiple of 16) of global memory, from an address at 16 bytes, into the L2.
__device__ inline void prefetch_l2(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

}  // namespace isobit::hopper
