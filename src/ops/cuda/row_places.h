#pragma once
// How many clusters of a kernel over rows the GPU holds at once.
#include <map>
#include <mutex>

#include "ops/cuda/launch.h"
#include "ops/cuda/row_plan.h"

namespace isobit::cuda {

// Asked for once per kernel and device; also allows the kernel its shared memory and large clusters there.
template <typename... Params>
const ClusterPlaces& row_places(const char* name, void (*kernel)(Params...), size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, ClusterPlaces> known;
  int device = 0;
  check(cudaGetDevice(&device), name);
  const std::lock_guard lock(mutex);
  const auto [at, fresh] = known.try_emplace({reinterpret_cast<const void*>(kernel), device});
  ClusterPlaces& places = at->second;
  if (!fresh) return places;
  allow_shared_memory(name, kernel, shared_bytes);
  allow_large_clusters(name, kernel);
  for (const int size : {1, 2, 3, 4, 5, 6, 7, 8, 16}) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size) * 64);
    config.blockDim = dim3(kRowThreads);
    config.dynamicSmemBytes = shared_bytes;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(size);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int n = 0;
    if (cudaOccupancyMaxActiveClusters(&n, kernel, &config) == cudaSuccess) places[static_cast<size_t>(size)] = n;
    cudaGetLastError();
  }
  if (places[1] == 0) places[1] = 1;
  return places;
}

}  // namespace isobit::cuda
