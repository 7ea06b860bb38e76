#pragma once
// The backend that every machine has: the host's cores, SIMD chosen at run time, the contract's bits.
#include <memory>
#include <string>

#include "ops/backend.h"

namespace isobit {

struct CpuOptions {
  int threads = 0;          // 0: one per core
  std::string simd_target;  // empty: the best this machine has; else scalar, ssse3, sse4, avx2, avx512, neon, ...
};

// Throws Error(kUnsupported) where this machine or build lacks the SIMD target, naming those it has.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options = {});

}  // namespace isobit
