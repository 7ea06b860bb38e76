#include "ops/cuda/attention_decode.cuh"

namespace isobit::cuda::decode {

template void launch_dim<256, true>(const AttentionArgs&, const AttentionPlan&, const KernelContext&);

}  // namespace isobit::cuda::decode
