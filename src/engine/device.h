#pragma once
// The one place that turns a device's name into a Backend.
#include <memory>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace isobit {

struct DeviceOptions {
  std::string device = "auto";  // auto: the first usable GPU, else the CPU; cpu; cuda; cuda:N
  int threads = 0;              // CPU; 0: one per hardware thread
  std::string simd;             // CPU; "": the best this processor has
};

// Throws Error(kDevice) that says what is missing and what can be done. "auto" never fails for want of a GPU.
std::unique_ptr<Backend> make_backend(const DeviceOptions& options);

// The SIMD targets this processor can run, the best first.
std::vector<std::string> cpu_simd_targets();

}  // namespace isobit
