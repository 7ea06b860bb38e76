#include "ops/cuda/attention_decode.cuh"
#include "ops/cuda/attention_plan.h"

namespace isobit::cuda {
namespace decode {

// Instantiated in attention_decode_<head_dim>_<type of the cache>.cu, so that they compile side by side.
extern template void launch_config<Config<64, 1, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 1, true, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 2, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 2, true, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 1, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 1, true, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 2, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 2, true, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 1, false, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 1, true, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 2, false, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<64, 2, true, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 1, false, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 1, true, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 2, false, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<128, 2, true, true>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<256, 1, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<256, 1, true, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<256, 2, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
extern template void launch_config<Config<256, 2, true, false>>(const AttentionArgs&, int, int, const KernelContext&);

namespace {

template <int kDim, bool kFp8>
void launch_dim(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context) {
  const int units = static_cast<int>(plan.units);
  if (plan.cluster > 1) {
    if (plan.query_tiles == 1) return launch_config<Config<kDim, 1, true, kFp8>>(args, units, plan.cluster, context);
    return launch_config<Config<kDim, 2, true, kFp8>>(args, units, plan.cluster, context);
  }
  if (plan.query_tiles == 1) return launch_config<Config<kDim, 1, false, kFp8>>(args, units, 1, context);
  launch_config<Config<kDim, 2, false, kFp8>>(args, units, 1, context);
}

}  // namespace
}  // namespace decode

void launch_attention_decode(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context) {
  const int head_dim = args.cache.head_dim;
  if (args.cache.type == DType::kF8E4M3) {
    if (head_dim == 64) return decode::launch_dim<64, true>(args, plan, context);
    return decode::launch_dim<128, true>(args, plan, context);
  }
  if (head_dim == 64) return decode::launch_dim<64, false>(args, plan, context);
  if (head_dim == 128) return decode::launch_dim<128, false>(args, plan, context);
  decode::launch_dim<256, false>(args, plan, context);
}

}  // namespace isobit::cuda
