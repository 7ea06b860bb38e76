#pragma once
// Warps that act as one (PTX ISA, "elect.sync").
#include <cstdint>

namespace isobit::hopper {

// A value that all lanes have, so that the compiler knows it too and keeps it in uniform registers.
template <typename T>
__device__ inline T uniform(T v) {
  return __shfl_sync(0xffffffff, v, 0);
}

// True in one lane. Every lane of the warp calls.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{ .reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(elected)::"memory");
  return elected != 0;
}

}  // namespace isobit::hopper
