// The soft cap of logits, rule N26. Bytes: 4 read and 4 written an element, right after the GEMM that wrote them; about
// 25 operations an element.
#include "numerics/activation.h"
#include "numerics/convert.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {
namespace {

constexpr int kThreads = 256;

__global__ __launch_bounds__(kThreads) void soft_cap_kernel(SoftCapArgs a) {
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.count; i += step) {
    a.x[i] = numerics::canonical(numerics::soft_capped(a.x[i], a.cap));
  }
}

}  // namespace

void launch_soft_cap(const SoftCapArgs& args, const KernelContext& context) {
  if (args.count == 0) return;
  const int64_t ctas = (args.count + kThreads - 1) / kThreads, most = int64_t{8} * context.sm_count;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(ctas < most ? ctas : most));
  shape.block = dim3(kThreads);
  launch("soft_cap", soft_cap_kernel, shape, context.stream, args);
}

}  // namespace isobit::cuda
