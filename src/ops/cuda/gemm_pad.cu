#include "ops/cuda/gemm.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {
namespace {

__global__ void pad_rows_kernel(const uint16_t* from, int64_t columns, uint16_t* to, int64_t to_columns) {
  hopper::wait_for_predecessors();
  hopper::launch_dependents();
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < to_columns; c += blockDim.x) {
    to[row * to_columns + c] = c < columns ? from[row * columns + c] : uint16_t{0};
  }
}

}  // namespace

void launch_pad_rows(const uint16_t* from, int64_t rows, int64_t columns, uint16_t* to, int64_t to_columns,
                     cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(rows));
  shape.block = dim3(256);
  launch("gemm: padding x", pad_rows_kernel, shape, stream, from, columns, to, to_columns);
}

}  // namespace isobit::cuda
