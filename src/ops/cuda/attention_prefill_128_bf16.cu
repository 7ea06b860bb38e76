#include "ops/cuda/attention_prefill.cuh"

namespace isobit::cuda::prefill {

template void launch_config<Config<128, 2, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                   const KernelContext&);

}  // namespace isobit::cuda::prefill
