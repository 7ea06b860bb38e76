#include "ops/cuda/launch.h"
#include "ops/cuda/scatter.h"

namespace isobit::cuda {
namespace {

constexpr int kThreads = 256, kCtas = 8;  // a part

__global__ __launch_bounds__(kThreads) void scatter_kernel(const __grid_constant__ ScatterParts parts) {
  const ScatterPart p = parts.part[blockIdx.y];
  for (size_t i = blockIdx.x * static_cast<size_t>(kThreads) + threadIdx.x; i < p.words; i += kThreads * kCtas) {
    const uint32_t word = p.from[i];
    const int drawn = -2 - static_cast<int>(word);
    p.to[i] = p.drawn != nullptr && drawn >= 0 ? static_cast<uint32_t>(p.drawn[drawn]) : word;
  }
}

}  // namespace

void launch_scatter(const ScatterParts& parts, cudaStream_t stream) {
  if (parts.count == 0) return;
  LaunchShape shape;
  shape.grid = dim3(kCtas, static_cast<unsigned>(parts.count));
  shape.block = dim3(kThreads);
  shape.programmatic = false;
  launch("scatter", scatter_kernel, shape, stream, parts);
}

}  // namespace isobit::cuda
