#include "ops/cuda/attention_launch.h"
#include "ops/cuda/device.h"

namespace isobit::cuda {

void launch_attention(const AttentionArgs& args, const KernelContext& context) {
  if (args.tokens == 0 || args.requests == 0) return;
  if (args.cache.type != args.type && args.cache.type != DType::kF8E4M3) {
    throw_invalid("attention: the cache is of another type than the queries; they must agree, or the cache be F8_E4M3");
  }
  const AttentionResources resources{context.sm_count, static_cast<int64_t>(context.workspace_bytes),
                                     context.counters != nullptr ? kCounters - kAttentionTickets : 0};
  const AttentionPlan plan = plan_attention(args, resources);
  const int most_rows = args.max_query * (args.q_heads / args.cache.kv_heads);
  if (plan.prefill) {
    launch_attention_prefill(args, plan, context);
  } else if (!plan.decode || most_rows > kAttentionDecodeRows) {
    launch_attention_generic(args, context, plan.decode ? kAttentionDecodeRows + 1 : 0);
  }
  if (plan.decode) launch_attention_decode(args, plan, context);
}

}  // namespace isobit::cuda
