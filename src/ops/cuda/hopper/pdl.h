#pragma once
// Programmatic dependent launch (PTX ISA, "griddepcontrol"). With launch.h's PDL attribute a kernel may start while the
// one before it on the stream still runs. Rules that keep this safe:
// - before wait_for_predecessors() a kernel reads only what no kernel of a step writes (weights, tables, the
//   step's inputs, keys and values of earlier steps);
// - it writes nothing to global memory before the wait, and every kernel calls the wait in every thread that reads or
//   writes global memory of the step; the wait returns when the kernels before have ended and their writes are visible.

namespace isobit::hopper {

__device__ inline void wait_for_predecessors() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel's CTAs start as soon as every CTA of this one has said so (or ended) and there is room.
__device__ inline void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace isobit::hopper
