#pragma once
// SIMD targets by name. A target is one bit of Highway's set; kernels take the bit, so that two backends in a process
// can run different targets.
#include <cstdint>
#include <string>
#include <vector>

namespace isobit::cpu {

// Empty: the best. Throws Error(kUnsupported) for a name that this machine or build lacks.
int64_t simd_target(const std::string& name);
std::string simd_target_name(int64_t target);
// Those that this build has and this machine can run, the best first.
std::vector<std::string> simd_target_names();

}  // namespace isobit::cpu
