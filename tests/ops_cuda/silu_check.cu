#include <cuda_runtime.h>

#include "numerics/ieee.h"
#include "ops/cuda/device.h"
#include "ops/cuda/silu.h"
#include "ops_cuda/silu_check.h"

namespace isobit {
namespace {

constexpr int kTogether = 8;

// Eights of neighbouring bit patterns, so that almost all are on one side of the form's limits.
__global__ void compare_silu(unsigned long long* differences) {
  const uint64_t threads = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  unsigned long long wrong = 0;
  for (uint64_t first = (blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x) * kTogether; first >> 32 == 0;
       first += threads * kTogether) {
    float x[kTogether];
    for (int i = 0; i < kTogether; i++) x[i] = numerics::from_bits(static_cast<uint32_t>(first) + i);
    cuda::silu(x);
    for (int i = 0; i < kTogether; i++) {
      const float want = cuda::silu(numerics::from_bits(static_cast<uint32_t>(first) + i));
      wrong += numerics::bits(x[i]) != numerics::bits(want) ? 1 : 0;
    }
  }
  if (wrong != 0) atomicAdd(differences, wrong);
}

}  // namespace

uint64_t silu_differences() {
  unsigned long long* differences = nullptr;
  cuda::check(cudaMalloc(&differences, sizeof *differences), "differences");
  cuda::check(cudaMemset(differences, 0, sizeof *differences), "differences");
  compare_silu<<<1056, 256>>>(differences);
  unsigned long long count = 0;
  const cudaError_t status = cudaMemcpy(&count, differences, sizeof count, cudaMemcpyDeviceToHost);
  cudaFree(differences);
  cuda::check(status, "silu");
  return count;
}

}  // namespace isobit
