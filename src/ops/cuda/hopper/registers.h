#pragma once
// Moving registers between warpgroups (PTX ISA, "setmaxnreg"): every warp of the warpgroup takes part; the kernel has
// __launch_bounds__(threads, 1). count: a multiple of 8 in [24, 256].

namespace isobit::hopper {

template <int count>
__device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace isobit::hopper
