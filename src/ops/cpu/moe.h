#pragma once
// Rule N23 on the CPU. Arguments are checked by the caller.
#include "ops/cpu/cpu_ops.h"
#include "ops/moe.h"

namespace isobit::cpu {

// Packs each expert's matrix that has rows, on every call.
void grouped_gemm(const Cpu& cpu, const GroupedGemmArgs& a);
void combine(const Cpu& cpu, const CombineArgs& a);

}  // namespace isobit::cpu
