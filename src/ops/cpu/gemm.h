#pragma once
// The GEMM of rule N7 on the CPU, from packed weights: the bits of numerics/gemm.h at SIMD speed.
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/packed_linear.h"

namespace isobit::cpu {

// a.w is a PackedLinear, a.type kBF16. Arguments are checked by the caller.
void gemm(const Cpu& cpu, const GemmArgs& a);

}  // namespace isobit::cpu
