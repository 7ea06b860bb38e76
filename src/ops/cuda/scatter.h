#pragma once
// Many small copies in one launch.
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace isobit::cuda {

struct ScatterPart {
  // Device memory, or pinned host memory.
  uint32_t* to = nullptr;
  const uint32_t* from = nullptr;
  size_t words = 0;
  const int32_t* drawn = nullptr;  // as Upload's
};
struct ScatterParts {
  std::array<ScatterPart, 20> part;
  int count = 0;
};
void launch_scatter(const ScatterParts& parts, cudaStream_t stream);

}  // namespace isobit::cuda
