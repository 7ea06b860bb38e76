#include "ops/cuda/attention_prefill.cuh"

namespace isobit::cuda {
namespace prefill {

// Instantiated in attention_prefill_<head_dim>_bf16.cu, so that they compile side by side.
extern template void launch_config<Config<64, 3, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                         const KernelContext&);
extern template void launch_config<Config<128, 2, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                          const KernelContext&);
extern template void launch_config<Config<256, 1, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                          const KernelContext&);
extern template void launch_config<Config<256, 2, false>>(const AttentionArgs&, int, const AttentionPlan&,
                                                          const KernelContext&);

namespace {

void launch_dim(const AttentionArgs& args, int group, const AttentionPlan& plan, const KernelContext& context) {
  if (args.cache.head_dim == 64) return launch_config<Config<64, 3, false>>(args, group, plan, context);
  if (args.cache.head_dim == 128) return launch_config<Config<128, 2, false>>(args, group, plan, context);
  if (plan.warpgroups == 1) return launch_config<Config<256, 1, false>>(args, group, plan, context);
  launch_config<Config<256, 2, false>>(args, group, plan, context);
}

// An FP8 cache's keys and values as bf16, a page a request, of the requests that the prefill kernel takes so many from
// one of them on.
constexpr int kWidenKeys = 64, kWidenThreads = 256;  // of a CTA; keys also of the prefill kernel's largest box
static_assert(kWidenedKeys % kWidenKeys == 0);

struct WidenParams {
  AttentionArgs args;
  KvCacheView to;
  int32_t* table;  // [requests]
  int min_rows, group, heads_there;
  int first;  // of the prefill kernel's requests
};

__global__ void __launch_bounds__(kWidenThreads) widen_cache(const __grid_constant__ WidenParams params) {
  hopper::wait_for_predecessors();
  hopper::launch_dependents();
  const AttentionArgs& a = params.args;
  const int tid = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.y);
  const int request = static_cast<int>(blockIdx.z), start = static_cast<int>(blockIdx.x) * kWidenKeys;
  const auto added = [&](int b) { return a.query_start[b + 1] - a.query_start[b]; };
  const auto taken = [&](int b) { return added(b) * params.group >= params.min_rows; };
  int page = taken(request) ? -params.first : -a.requests - params.first;
  for (int b = 0; b < request; b += kWidenThreads) page += __syncthreads_count(b + tid < request && taken(b + tid));
  const bool here = page >= 0 && page < params.to.pages;
  if (start == 0 && head == 0 && tid == 0) params.table[request] = here ? page : -1;
  // Keys before those that a row sees may be on pages that are gone.
  const int kv_len = a.kv_len[request], first = first_key(a, kv_len - added(request)) / 16 * 16;
  if (!here || start >= kv_len || start + kWidenKeys <= first) return;
  const int d = a.cache.head_dim, pieces = d / 16, page_size = a.cache.page_size;
  const int32_t* table = a.page_table + static_cast<int64_t>(request) * a.table_stride;
  for (int i = tid; i < kWidenKeys * pieces; i += kWidenThreads) {
    const int position = start + i / pieces, column = i % pieces * 16;
    const int64_t at =
        ((static_cast<int64_t>(page) * params.to.kv_heads + head) * params.to.page_size + position) * d + column;
    uint4 k = make_uint4(0, 0, 0, 0), v = k;
    if (position >= first && position < kv_len) {
      const int64_t row = (static_cast<int64_t>(table[position / page_size]) * params.heads_there + head) * page_size +
                          position % page_size;
      k = *reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(a.cache.k) + row * d + column);
      v = *reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(a.cache.v) + row * d + column);
    }
    const auto store = [&](void* to, const uint4& e) {
      uint4* words = reinterpret_cast<uint4*>(static_cast<uint16_t*>(to) + at);
      words[0] = widen_e4m3<false>(make_uint2(e.x, e.y));
      words[1] = widen_e4m3<false>(make_uint2(e.z, e.w));
    };
    store(params.to.k, k);
    store(params.to.v, v);
  }
}

// KV heads first to first + heads - 1 and their queries; still strided as all are.
AttentionArgs heads_of(const AttentionArgs& args, int group, int first, int heads) {
  AttentionArgs part = args;
  const int64_t queries = static_cast<int64_t>(first) * group * args.cache.head_dim;
  const int64_t bytes = static_cast<int64_t>(first) * args.cache.page_size * args.cache.head_dim;
  part.q += queries, part.out += queries;
  part.cache.k = static_cast<uint8_t*>(args.cache.k) + bytes;
  part.cache.v = static_cast<uint8_t*>(args.cache.v) + bytes;
  part.cache.k_scale += first, part.cache.v_scale += first;
  if (args.sinks != nullptr) part.sinks += first * group;
  part.cache.kv_heads = heads;
  return part;
}

// Widens keys and values of some of the prefill kernel's requests, from `first` on, to the start of the workspace; the
// arguments over them, and what is left of it.
AttentionArgs widen(const AttentionArgs& part, int first, int heads_there, int group, const AttentionPlan& plan,
                    KernelContext& context) {
  const WidenedCache size = widened_cache(part, plan.widened_requests, part.cache.kv_heads);
  AttentionArgs widened = part;
  widened.cache.type = part.type;
  widened.cache.pages = plan.widened_requests, widened.cache.page_size = static_cast<int32_t>(size.page_size);
  std::byte* at = static_cast<std::byte*>(context.workspace);
  widened.cache.k = at, widened.cache.v = at + size.bytes_each;
  int32_t* table = reinterpret_cast<int32_t*>(at + 2 * size.bytes_each);
  widened.page_table = table, widened.table_stride = 1;
  context.workspace = at + size.bytes, context.workspace_bytes -= static_cast<size_t>(size.bytes);

  const WidenParams params{part, widened.cache, table, least_prefill_rows(plan), group, heads_there, first};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(size.page_size / kWidenKeys), static_cast<unsigned>(part.cache.kv_heads),
                    static_cast<unsigned>(part.requests));
  shape.block = kWidenThreads;
  launch("attention_widen", widen_cache, shape, context.stream, params);
  return widened;
}

}  // namespace
}  // namespace prefill

void launch_attention_prefill(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context) {
  const int kv_heads = args.cache.kv_heads, group = args.q_heads / kv_heads;
  if (plan.widened_heads == 0) return prefill::launch_dim(args, group, plan, context);
  for (int request = 0; request < most_prefill_requests(args, plan); request += plan.widened_requests) {
    for (int head = 0; head < kv_heads; head += plan.widened_heads) {
      const AttentionArgs part = prefill::heads_of(args, group, head, std::min(plan.widened_heads, kv_heads - head));
      KernelContext rest = context;
      const AttentionArgs widened = prefill::widen(part, request, kv_heads, group, plan, rest);
      prefill::launch_dim(widened, group, plan, rest);
    }
  }
}

}  // namespace isobit::cuda
