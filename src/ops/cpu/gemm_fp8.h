#pragma once
// Rules N16 and N18 on the CPU. Arguments are checked by the caller.
#include "ops/cpu/cpu_ops.h"
#include "ops/gemm_fp8.h"

namespace isobit::cpu {

void gemm_fp8(const Cpu& cpu, const GemmFp8Args& a);
void grouped_gemm_fp8(const Cpu& cpu, const GroupedGemmFp8Args& a);
void quantize_fp8(const Cpu& cpu, const QuantizeFp8Args& a);
void gate(const Cpu& cpu, const GateArgs& a);

}  // namespace isobit::cpu
