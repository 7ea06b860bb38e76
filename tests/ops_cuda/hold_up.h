#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace isobit::test {

// Keeps one of the four schedulers of each of `sms` SMs busy for so many cycles: whatever else runs there goes on, but
// the warps of that scheduler fall behind the others.
void hold_up(int scheduler, int64_t cycles, int sms, cudaStream_t stream);

}  // namespace isobit::test
