#pragma once
// The GPU backend for sm_90 (H100, H200): the contract's bits at the memory's speed. A build with it runs on machines
// without a GPU too; nothing here touches the driver before it is called.
#include <memory>
#include <string>

#include "ops/backend.h"

namespace isobit {

struct CudaOptions {
  int device = 0;                              // as nvidia-smi counts, among those that CUDA_VISIBLE_DEVICES leaves
  size_t workspace_bytes = size_t{128} << 20;  // shared by all operators, allocated at once
  bool graphs = true;                          // record each step's operators as a CUDA graph and replay it
};

// GPUs that CUDA can see; 0 on a machine without a GPU or driver, and `why_none`, if given, then says why. Never
// throws.
int cuda_device_count(std::string* why_none = nullptr);

// Throws Error: kDevice (no GPU, no such number, not sm_90, driver too old), kOutOfMemory; the message says what is
// missing.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

}  // namespace isobit
