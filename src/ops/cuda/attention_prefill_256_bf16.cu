#include "ops/cuda/attention_prefill.cuh"

namespace isobit::cuda::prefill {

template void launch_config<Config<256, 1, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                   const KernelContext&);
template void launch_config<Config<256, 2, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                   const KernelContext&);

}  // namespace isobit::cuda::prefill
