#pragma once
// Copies of 16 bytes from global to shared memory that a thread starts and waits for itself.
#include <cstdint>

#include "ops/cuda/hopper/mbarrier.h"

namespace isobit::hopper {

__device__ inline void copy_async_16(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// Closes the group of the copies that this thread has started since the last one, be there any or none.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most the kLeft last groups of this thread are on their way; what came is seen by the thread itself.
template <int kLeft>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace isobit::hopper
