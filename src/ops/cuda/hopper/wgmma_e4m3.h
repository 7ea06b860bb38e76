#pragma once
// The warpgroup matrix instruction m64nNk32 for e4m3 with f32 accumulators (PTX ISA, "wgmma"): one step of rule N4 for
// 64×N outputs. Both operands K-major in shared memory; descriptors and the accumulators' layout are wgmma.h's, the
// next 32 of K are 32 bytes further: descriptor + 2.
#include "ops/cuda/hopper/wgmma.h"

namespace isobit::hopper {

template <int n>
struct WgmmaE4M3Shape;

#include "ops/cuda/hopper/wgmma_e4m3_shapes.inc"

// d = a·b + (accumulate ? d : 0). `accumulate` is a constant after inlining.
template <int n>
__device__ inline void wgmma_e4m3(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) {
  if (accumulate) {
    WgmmaE4M3Shape<n>::template run<1>(d, a, b);
  } else {
    WgmmaE4M3Shape<n>::template run<0>(d, a, b);
  }
}

}  // namespace isobit::hopper
