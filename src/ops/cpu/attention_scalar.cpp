// The contract's scalar row over the paged cache, its steps without their rarer cases: for targets without vectors.
#include <algorithm>
#include <vector>

#include "numerics/attention.h"
#include "ops/cpu/attention_tile.h"
#include "ops/cpu/dot16_usual.h"

namespace isobit::cpu {
namespace {

using namespace numerics;

template <Operand kind>
struct UsualStep : RuleStep<kind> {};
template <>
struct UsualStep<Operand::kBF16> {
  static float dot(float c, const uint16_t* a, const uint16_t* b) { return dot16_usual(c, a, b); }
};

template <Operand kind>
void one_row(const AttentionArgs& a, const AttentionPlan& plan, const AttentionQuery& q, int32_t head) {
  const int32_t kv_head = head / (a.q_heads / a.cache.kv_heads);
  const int dim = a.cache.head_dim;
  const bool fp8 = a.cache.type == DType::kF8E4M3;
  std::vector<uint16_t> scratch(static_cast<size_t>(fp8 ? 17 * dim : 0));
  const auto read = [&](const void* base, int64_t key, uint16_t* row) -> const uint16_t* {
    const int64_t at = plan.element(q.request, q.cache_index(key), kv_head);
    if (!fp8) return static_cast<const uint16_t*>(base) + at;
    for (int d = 0; d < dim; d++) {
      const uint8_t e = static_cast<const uint8_t*>(base)[at + d];
      row[d] = kind == Operand::kBF16 ? cached_bf16(e) : cached_f16(e);
    }
    return row;
  };
  const int64_t at = (q.token * a.q_heads + head) * dim;
  // Sixteen values are used at once: FP8 ones each in a row of scratch behind the key's.
  attention_row<kind, UsualStep<kind>>(
      a.q + at, dim, q.last, [&](int64_t key) { return read(a.cache.k, key, scratch.data()); },
      [&](int64_t key) { return read(a.cache.v, key, scratch.data() + (fp8 ? (key % 16 + 1) * dim : 0)); },
      [&](int64_t key) { return q.allowed(key); }, score_scale(a, kv_head),
      a.sinks != nullptr ? a.sinks + head : nullptr, a.out + at);
}

}  // namespace

void attention_tile_scalar(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile) {
  for (int32_t t = 0; t < tile.tokens; t++) {
    for (int32_t h = tile.head_begin; h < tile.head_end; h++) {
      if (args.type == DType::kBF16) {
        one_row<Operand::kBF16>(args, plan, tile.queries[t], h);
      } else {
        one_row<Operand::kF16>(args, plan, tile.queries[t], h);
      }
    }
  }
}

}  // namespace isobit::cpu
