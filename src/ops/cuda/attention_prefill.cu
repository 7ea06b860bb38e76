#include "ops/cuda/attention_prefill.cuh"

namespace isobit::cuda {
namespace prefill {

// Instantiated in attention_prefill_<head_dim>_bf16.cu, so that they compile side by side.
extern template void launch_config<Config<64, 3, false>>(const AttentionArgs&, const AttentionPlan&,
                                                         const KernelContext&);
extern template void launch_config<Config<128, 2, false>>(const AttentionArgs&, const AttentionPlan&,
                                                          const KernelContext&);
extern template void launch_config<Config<256, 1, false>>(const AttentionArgs&, const AttentionPlan&,
                                                          const KernelContext&);
extern template void launch_config<Config<256, 2, false>>(const AttentionArgs&, const AttentionPlan&,
                                                          const KernelContext&);

}  // namespace prefill

void launch_attention_prefill(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context) {
  using prefill::Config;
  if (args.cache.head_dim == 64) return prefill::launch_config<Config<64, 3, false>>(args, plan, context);
  if (args.cache.head_dim == 128) return prefill::launch_config<Config<128, 2, false>>(args, plan, context);
  if (plan.warpgroups == 1) return prefill::launch_config<Config<256, 1, false>>(args, plan, context);
  prefill::launch_config<Config<256, 2, false>>(args, plan, context);
}

}  // namespace isobit::cuda
