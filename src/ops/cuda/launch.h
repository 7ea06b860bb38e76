#pragma once
// Kernel launches: errors carry the kernel's name; every kernel of a step is launched so that it may start while the
// one before it drains (hopper/pdl.h has the rules).
#include <cuda_runtime.h>

#include <utility>

#include "ops/cuda/device.h"

namespace isobit::cuda {

struct LaunchShape {
  dim3 grid = 1, block = 1;
  size_t shared_bytes = 0;
  dim3 cluster = 1;
  bool programmatic = true;  // the kernel calls wait_for_predecessors()
};

template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.programmatic) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster.x;
    attributes[count].val.clusterDim.y = shape.cluster.y;
    attributes[count++].val.clusterDim.z = shape.cluster.z;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name);
}

// Before a launch with more than 48 KB of shared memory: the kernel's limit there becomes all that the device gives. It
// is one limit for all threads of the process, so a launch must not set it to its own need: another one's may be
// larger.
template <typename... Params>
void allow_shared_memory(const char* name, void (*kernel)(Params...), size_t bytes) {
  if (bytes > 48 * 1024) allow_most_shared_memory(name, reinterpret_cast<const void*>(kernel));
}

// For clusters of 16, which not every GPU can run.
template <typename... Params>
void allow_large_clusters(const char* name, void (*kernel)(Params...)) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        name);
}

}  // namespace isobit::cuda
