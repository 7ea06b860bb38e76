#include "ops/cuda/attention_launch.h"

namespace isobit::cuda {

void launch_attention_decode(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context) {
  const int head_dim = args.cache.head_dim;
  const bool fp8 = args.cache.type == DType::kF8E4M3;
  const auto launch = head_dim == 64    ? (fp8 ? decode::launch_dim<64, true> : decode::launch_dim<64, false>)
                      : head_dim == 128 ? (fp8 ? decode::launch_dim<128, true> : decode::launch_dim<128, false>)
                                        : (fp8 ? decode::launch_dim<256, true> : decode::launch_dim<256, false>);
  launch(args, plan, context);
}

}  // namespace isobit::cuda
