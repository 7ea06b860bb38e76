#pragma once
#include <cstdint>

namespace isobit::cuda {

// Where a thread stands in a ring of shared-memory stages.
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;
  __device__ void step(int stages) {
    if (++slot == stages) slot = 0, phase ^= 1;
  }
};

}  // namespace isobit::cuda
