#include <cstdint>

#include "ops_cuda/hold_up.h"

namespace isobit::test {
namespace {

constexpr int kThreads = 1024;  // of which a quarter stays: eight warps of a scheduler

__global__ void __launch_bounds__(kThreads) spin(int scheduler, long long cycles) {
  if (static_cast<int>(threadIdx.x / 32) % 4 != scheduler) return;
  const long long start = clock64();
  uint32_t a = threadIdx.x, b = a + 1;
  while (clock64() - start < cycles) {
    // An instruction of either pipe each cycle; in assembly, for the compiler would work the loop out.
#pragma unroll
    for (int i = 0; i < 64; i++) {
      asm volatile("mad.lo.u32 %0, %0, 5, 1;\nxor.b32 %1, %1, 7;" : "+r"(a), "+r"(b));
    }
  }
}

}  // namespace

void hold_up(int scheduler, int64_t cycles, int sms, cudaStream_t stream) {
  // An SM runs kernels side by side only if they divide its memory into cache and shared memory alike.
  cudaFuncSetAttribute(spin, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  spin<<<sms, kThreads, 0, stream>>>(scheduler, cycles);
}

}  // namespace isobit::test
