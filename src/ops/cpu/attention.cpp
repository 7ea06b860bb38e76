#include "numerics/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "ops/cpu/attention_plan.h"
#include "ops/cpu/cpu_ops.h"

namespace isobit::cpu {
namespace {

using namespace numerics;

// The contract's scalar row over the paged cache. An FP8 element is its value times the head's scale, rounded once.
template <Operand kind>
void scalar_row(const AttentionArgs& a, const AttentionPlan& plan, const AttentionQuery& q, int32_t head) {
  const int32_t kv_head = head / (a.q_heads / a.cache.kv_heads);
  const int dim = a.cache.head_dim;
  std::vector<uint16_t> scratch(static_cast<size_t>(a.cache.type == DType::kF8E4M3 ? 17 * dim : 0));
  const auto read = [&](const void* base, const float* scales, int64_t key, uint16_t* row) -> const uint16_t* {
    const int64_t at = plan.element(q.request, q.cache_index(key), kv_head);
    if (a.cache.type != DType::kF8E4M3) return static_cast<const uint16_t*>(base) + at;
    for (int d = 0; d < dim; d++) {
      const float x = fmul(e4m3_to_f32(static_cast<const uint8_t*>(base)[at + d]), scales[kv_head]);
      row[d] = kind == Operand::kBF16 ? f32_to_bf16(x) : f32_to_f16(x);
    }
    return row;
  };
  // attention_row goes through 16 values again and again: each has a row of scratch until another takes it.
  int64_t held[16];
  std::fill_n(held, 16, -1);
  const int64_t at = (q.token * a.q_heads + head) * dim;
  attention_row<kind>(
      a.q + at, dim, q.last, [&](int64_t key) { return read(a.cache.k, a.cache.k_scale, key, scratch.data()); },
      [&](int64_t key) {
        const int64_t i = key % 16;
        uint16_t* row = scratch.data() + (i + 1) * dim;
        if (a.cache.type == DType::kF8E4M3 && held[i] == key) return static_cast<const uint16_t*>(row);
        held[i] = key;
        return read(a.cache.v, a.cache.v_scale, key, row);
      },
      [&](int64_t key) { return q.allowed(key); }, AttentionScale{a.scale, a.soft_cap},
      a.sinks != nullptr ? a.sinks + head : nullptr, a.out + at);
}

}  // namespace

void attention(const Cpu& cpu, const AttentionArgs& a) {
  require(a.cache.type == a.type || a.cache.type == DType::kF8E4M3, "attention: the cache is {}, the queries {}",
          dtype_info(a.cache.type).name, dtype_info(a.type).name);
  const AttentionPlan plan(a);
  cpu.pool.parallel_for(int64_t{a.tokens} * a.q_heads, [&](int, int64_t i) {
    const AttentionQuery& q = plan.queries()[static_cast<size_t>(i / a.q_heads)];
    const auto head = static_cast<int32_t>(i % a.q_heads);
    if (a.type == DType::kBF16) {
      scalar_row<Operand::kBF16>(a, plan, q, head);
    } else {
      scalar_row<Operand::kF16>(a, plan, q, head);
    }
  });
}

}  // namespace isobit::cpu
